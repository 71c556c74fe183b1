"""Batches for Lightning, the same after an interruption as without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from avemo.data.augment import AugmentConfig, augment
from avemo.data.batch import Batch, no_clips
from avemo.data.cache import ClipIndex, ClipInfo
from avemo.data.corpora.listing import shared_speakers
from avemo.data.features import Clip, FeatureConfig
from avemo.data.folds import FoldConfig, folded
from avemo.data.inputs import Sample, collate, to_sample
from avemo.data.shards import open_clips
from avemo.data.worker import context

Key = tuple[int, int, int]
"""Epoch, place in the cache and how often the clip came in this epoch before: all that a training sample depends on,
apart from the seed."""


class ClipDataModule(L.LightningDataModule):
    """The splits of a prepared corpus.

    Training clips are shuffled, cropped and changed by (seed, epoch, clip) alone. The training
    loader keeps its place in the checkpoint, so a run that resumes in the middle of an epoch sees
    the batches that an unbroken one would have seen. Where several processes train, each gets its
    share of every batch of training and validation.

    Args:
        cache: folder written by `avemo prepare`, or of shards; with `shards`, where copies of them are kept.
        batch_size: clips per batch, of all processes together where several train.
        seed: of shuffling and augmentation.
        max_seconds: longer clips are cropped, at a random place in training and in the middle
            otherwise; None keeps them whole.
        augment: changes to training clips; the default changes nothing.
        drop_last: leave out the last batch of a training epoch if it is not full.
        num_workers: processes that read ahead; 0 reads in the main one, which is enough, as a clip
            costs a copy.
        balanced: draw every class equally often in training. An epoch has as many clips as without;
            those of rare classes come several times, changed anew each time, and of frequent
            classes every epoch draws others.
        needs: the streams that a clip must have, of "audio" and "video"; clips without are left out.
        fold: splits that take the place of the corpus's own.
        shared_speakers: train although a speaker is in two splits.
        shards: a folder or a URL to which `avemo shards` wrote.
        shards_mixed: of how many shards the clips of training are mixed; where there are no more, the order is that
            of a cache.
        shards_gb: GB that copies of shards may take.

    Attributes:
        cache: the opened clips.
        classes: the labels, sorted.
        features: the settings of the cache.

    Raises:
        FileNotFoundError: there is no finished cache.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        cache: Path,
        *,
        batch_size: int = 16,
        seed: int = 0,
        max_seconds: float | None = 10.0,
        augment: AugmentConfig | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
        balanced: bool = False,
        needs: Collection[str] = (),
        fold: FoldConfig = FoldConfig(),  # noqa: B008, it is frozen
        shared_speakers: bool = False,
        shards: str | None = None,
        shards_mixed: int = 16,
        shards_gb: float = 20.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if max_seconds is not None and max_seconds <= 0:
            raise ValueError(f"max_seconds must be positive, got {max_seconds}")
        if seed < 0 or num_workers < 0:
            raise ValueError(
                f"seed and num_workers must not be negative, got {seed} and {num_workers}"
            )
        if shards_mixed < 1:
            raise ValueError(f"shards_mixed must be at least 1, got {shards_mixed}")
        if not shards_gb > 0:
            raise ValueError(f"shards_gb must be positive, got {shards_gb}")
        self.cache = open_clips(cache, shards, int(shards_gb * 1e9))
        self.cache.clips = folded(self.cache.clips, fold)
        self.classes = self.cache.classes
        self.features = self.cache.features
        self.batch_size = batch_size
        self.seed = seed
        self.max_seconds = max_seconds
        self.augment = augment or AugmentConfig()
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.balanced = balanced
        self.needs = needs
        self.shared_speakers = shared_speakers
        self.shards_mixed = shards_mixed

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of the training split.

        Raises:
            ValueError: a speaker is in two splits, and that was not asked for.
        """
        if not self.shared_speakers:
            _check_speakers(self.cache)
        indices, labels = self._training_labels()
        dataset = _TrainingClips(self.cache, self.seed, self.max_seconds, self.augment)
        groups = None if self.cache.groups is None else self.cache.groups[indices]
        classes = labels if self.balanced else None
        order = EpochSampler(indices, self.seed, classes, groups, self.shards_mixed)
        return self._loader(dataset, order, self._share(), self.drop_last)

    def class_weights(self) -> NDArray[np.float32]:
        """The inverse of how many training clips each class has, (classes,), 1 in the mean over clips; 0 where none."""
        _, labels = self._training_labels()
        counts = np.bincount(labels, minlength=len(self.classes))
        present = np.count_nonzero(counts)
        return np.where(counts, len(labels) / (present * np.maximum(counts, 1)), 0).astype(
            np.float32
        )

    def _training_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of the training clips in the cache, and their classes."""
        indices = self._indices("train")
        return indices, np.array([self.cache.label(int(index)) for index in indices])

    def val_dataloader(self) -> BatchLoader:
        """Batches of the validation split, in the manifest's order."""
        return self._evaluation_loader("val", self._share())

    def test_dataloader(self) -> BatchLoader:
        """Batches of the test split, in the manifest's order."""
        return self._evaluation_loader("test", self._share())

    def evaluation_dataloader(self, split: str) -> BatchLoader:
        """Batches of any split as evaluation sees it: unchanged, in the manifest's order, all in this process."""
        return self._evaluation_loader(split, Share())

    def left_out(self, split: str) -> str:
        """What is said of the clips of a split that lack a stream which is needed; empty if none does."""
        clips = [self.cache.clips[i] for i in self.cache.select(split)]
        lacking = Counter(filter(None, (_lacks(clip, self.needs) for clip in clips)))
        if not lacking:
            return ""
        counts = " and ".join(f"{count} have no {name}" for name, count in sorted(lacking.items()))
        return f"{lacking.total()} of the {len(clips)} clips of the split {split!r} are left out: {counts}"

    def _evaluation_loader(self, split: str, share: Share) -> BatchLoader:
        dataset = _EvaluationClips(self.cache, self._indices(split), self.max_seconds)
        return self._loader(dataset, range(len(dataset)), share, drop_last=False)

    def _loader(
        self,
        dataset: _Clips,
        order: Sequence[int] | EpochSampler,
        share: Share,
        drop_last: bool,
    ) -> BatchLoader:
        batches = SharedBatches(order, self.batch_size, drop_last, share)
        # What fetches shards has threads, which a fork would not copy.
        apart = self.num_workers and self.cache.groups is not None
        return BatchLoader(
            dataset,
            batches,
            num_workers=self.num_workers,
            collate_fn=partial(_collate, self.features),
            multiprocessing_context=context([__name__]) if apart else None,
        )

    def _share(self) -> Share:
        """Of the process of the trainer that this serves."""
        trainer = self.trainer
        return Share(trainer.global_rank, trainer.world_size) if trainer else Share()

    def _indices(self, split: str) -> NDArray[np.int64]:
        indices = self.cache.select(split)
        if not len(indices):
            raise ValueError(f"the cache {self.cache.path} has no clips of the split {split!r}")
        whole = np.array(
            [i for i in indices if not _lacks(self.cache.clips[i], self.needs)], np.int64
        )
        if not len(whole):
            raise ValueError(
                f"the model cannot use the cache {self.cache.path}: {self.left_out(split)}"
            )
        return whole


class Share(NamedTuple):
    """What of each batch is a process's own: of every `processes` clips one, beginning with number `process`."""

    process: int = 0
    processes: int = 1


def _check_speakers(cache: ClipIndex) -> None:
    shared = shared_speakers((clip.speaker, clip.split) for clip in cache.clips)
    for speaker, splits in shared.items():
        others = f", and so are {len(shared) - 1} others" if len(shared) > 1 else ""
        raise ValueError(
            f"the speaker {speaker!r} is in the splits {' and '.join(splits)}{others}: what a model "
            "is tested on must not have been trained on; data.fold makes splits of whole speakers, "
            "data.shared_speakers takes them as they are"
        )


_SAID = {"audio": "sound", "video": "picture"}


def _lacks(clip: ClipInfo, needs: Collection[str]) -> str:
    """The stream of those needed that a clip lacks, in words, or an empty string."""
    return next((_SAID[name] for name in needs if name not in clip.streams), "")


class EpochSampler(Sampler[Key]):
    """Training keys in an order that follows from seed and epoch alone.

    Lightning calls :meth:`set_epoch` before each epoch.

    Args:
        indices: places in the cache.
        seed: of the order.
        labels: classes of `indices`, to draw each equally often; None draws every clip once.
        groups: of `indices`, which come a few groups at a time; None mixes all.
        mixed: how many groups at a time.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        seed: int,
        labels: NDArray[np.int64] | None = None,
        groups: NDArray[np.int64] | None = None,
        mixed: int = 1,
    ) -> None:
        self.indices = indices
        self.seed = seed
        self.labels = labels
        self.groups = groups
        self.mixed = mixed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        rng = np.random.default_rng([self.seed, self.epoch])
        chosen = self.indices if self.labels is None else self._balanced(rng, self.labels)
        before: Counter[int] = Counter()
        for index in self._ordered(rng.permutation(chosen)).tolist():
            yield self.epoch, index, before[index]
            before[index] += 1

    def _ordered(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places, a few groups after the other."""
        if self.groups is None:
            return places
        present = np.unique(self.groups)
        turn = np.zeros(present[-1] + 1, np.int64)  # of each group
        turn[np.random.default_rng([self.seed, self.epoch, 1]).permutation(present)] = (
            np.arange(len(present)) // self.mixed
        )
        group_of = dict(zip(self.indices.tolist(), self.groups.tolist(), strict=True))
        turns = turn[[group_of[place] for place in places.tolist()]]
        return places[np.argsort(turns, kind="stable")]

    def _balanced(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """As many places as there are, those of each class as often as of any other, give or take one."""
        classes = rng.permutation(np.unique(labels))
        places = []
        for turn, label in enumerate(classes):
            wanted = (len(labels) + turn) // len(classes)
            members = rng.permutation(self.indices[labels == label])
            places.append(
                np.resize(members, wanted)
            )  # from the beginning again where they are too few
        return np.concatenate(places)


class SharedBatches(BatchSampler):
    """A process's share of every batch: the batches are the same for any number of processes.

    All processes have equally many, of which the last may have no clips.

    Args:
        order: the keys, or places, of all clips.
        batch_size: clips of all processes together.
        drop_last: leave out the last batch if it is not full.
        share: of this process.
    """

    def __init__(
        self, order: Sequence[int] | EpochSampler, batch_size: int, drop_last: bool, share: Share
    ) -> None:
        super().__init__(order, batch_size, drop_last)  # type: ignore[arg-type]  # it takes any keys
        self.share = share
        self.skip = 0  # batches of the next pass that were given out before

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in islice(super().__iter__(), self.skip, None):
            yield batch[self.share.process :: self.share.processes]


class BatchLoader(DataLoader[Batch]):
    """A loader whose place in the epoch goes into the checkpoint and comes back from it.

    The place is counted in batches of all processes, whose number may be another when it comes back.
    """

    def __init__(self, dataset: _Clips, batches: SharedBatches, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)
        self._clips = dataset
        self._batches = batches
        self._place = {"epoch": 0, "batches": 0}
        self._resume: dict[str, int] | None = None

    @property
    def epoch(self) -> int:
        """Of the next pass; Lightning sets it before each."""
        return getattr(self._batches.sampler, "epoch", 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass, in training."""
        assert isinstance(self._batches.sampler, EpochSampler)
        self._batches.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches given out in it."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next pass, if it is of that epoch, begin after those batches."""
        self._resume = dict(state)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing is read before the first batch is wanted, by when the epoch has been
        # set.
        epoch, resume = self.epoch, self._resume
        self._resume = None
        first = resume["batches"] if resume and resume["epoch"] == epoch else 0
        self._batches.skip = first
        self._place = {"epoch": epoch, "batches": first}
        wanted = ([self._clips.place(key) for key in keys] for keys in self._batches)
        with self._clips.cache.ahead(wanted) as reached:
            for batch in super().__iter__():
                reached()
                self._place["batches"] += 1
                yield batch


class _Clips(Dataset[Any]):
    """Clips by keys.

    Args:
        cache: has them.
        max_seconds: longer ones are cropped.
    """

    def __init__(self, cache: ClipIndex, max_seconds: float | None) -> None:
        self.cache, self.max_seconds = cache, max_seconds

    def place(self, key: Any) -> int:
        """In the cache."""
        raise NotImplementedError


class _TrainingClips(_Clips):
    def __init__(
        self, cache: ClipIndex, seed: int, max_seconds: float | None, config: AugmentConfig
    ) -> None:
        super().__init__(cache, max_seconds)
        self.seed, self.config = seed, config

    def place(self, key: Key) -> int:
        return key[1]

    def __getitem__(self, key: Key) -> Sample:
        epoch, index, before = key
        rng = np.random.default_rng([self.seed, epoch, index, *([before] if before else [])])
        clip = crop_clip(self.cache[index], self.cache.features, self.max_seconds, rng.random())
        waveform = self.cache.features.sound == "waveform"
        return augment(_sample(self.cache, index, clip), self.config, rng, waveform=waveform)


class _EvaluationClips(_Clips):
    def __init__(
        self, cache: ClipIndex, indices: NDArray[np.int64], max_seconds: float | None
    ) -> None:
        super().__init__(cache, max_seconds)
        self.indices = indices

    def place(self, key: int) -> int:
        return int(self.indices[key])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int) -> Sample:
        index = self.place(key)
        clip = crop_clip(self.cache[index], self.cache.features, self.max_seconds, 0.5)
        return _sample(self.cache, index, clip)


def _collate(features: FeatureConfig, samples: Sequence[Sample]) -> Batch:
    return collate(samples) if samples else no_clips(features.audio_features, features.face_size)


def _sample(cache: ClipIndex, index: int, clip: Clip) -> Sample:
    return to_sample(clip, cache.features, cache.label(index), cache.clips[index].path)


def crop_clip(clip: Clip, config: FeatureConfig, max_seconds: float | None, place: float) -> Clip:
    """Cuts a clip that is too long, its streams alike.

    Args:
        clip: the clip.
        config: its settings.
        max_seconds: the longest to keep; None keeps all.
        place: 0 keeps the beginning, 1 the end, 0.5 the middle.
    """
    frames = clip.video_frames(config)
    if max_seconds is None or frames <= max_seconds * config.fps:
        return clip
    count = max(1, int(max_seconds * config.fps))
    first = round(place * (frames - count))
    a, b = (round(n / config.fps * config.audio_fps) for n in (first, first + count))
    return Clip(
        clip.audio[a : b + 1], clip.video[first : first + count], clip.valid[first : first + count]
    )
