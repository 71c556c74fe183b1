"""What a model is built from: every size is configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The audio encoder; each takes no notice of settings that are another's.

    Attributes:
        channels: output channels of the five convolutions of an ABFCN.
        stride: stride of its first convolution over (frequency, time).
        out_features: C, features per frame of the result of a 1D-ABFCN.
        dropout: probability of dropping a whole channel before its last layer.
        encoder: one of `avemo.models.parts.AUDIO_ENCODERS`; or a speech model of `transformers`, by a
            folder's path or as owner/name, which hears the waveform.
        lrn: whether an ABFCN has its local response normalisations.
        width: share of the published widths that the encoders of other papers get.
        weights: a file of weights that training starts from, such as a state dict of AlexNet.
        architecture: of an encoder of `transformers`, as that library describes it; found at the start of
            a training where it is null.
        trained_layers: how many of its last layers are trained; 0 freezes it, null trains all of it.
        rate: share of the learning rate that it gets.
    """

    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    stride: tuple[int, int] = (4, 2)
    out_features: int = 256
    dropout: float = 0.2
    encoder: str = "1d_abfcn"
    lrn: bool = True
    width: float = 1.0
    weights: Path | None = None
    architecture: dict[str, Any] | None = None
    trained_layers: int | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class NetworkConfig:
    """A network that encodes a face (`avemo.models.networks`).

    Attributes:
        name: `torchvision:NAME`, `timm:NAME`, or one of ours: `frames`, or `landmarks` for distances between them.
        weights: a file of weights that training starts from.
        size: faces are scaled to this side; 0 leaves them as they are.
    """

    name: str = "frames"
    weights: Path | None = None
    size: int = 0


@dataclass(frozen=True)
class VideoEncoderConfig:
    """The face encoder.

    Attributes:
        channels: output channels of the stages; each stage halves the picture.
        out_features: D, features per frame of the result.
        dropout: probability of dropping a whole channel before the last layer.
        encoder: one of `avemo.models.parts.VIDEO_ENCODERS`; or a model of pictures of `transformers`, by
            a folder's path or as owner/name.
        weights: a file of weights that training starts from, of the same encoder.
        architecture: of an encoder of `transformers`, as that library describes it; found at the start of
            a training where it is null.
        trained_layers: how many of its last layers are trained; 0 freezes it, null trains all of it.
        rate: share of the learning rate that it gets.
        networks: of the encoder `networks`, whose features are concatenated.
        blstm: units of each direction of a bidirectional LSTM after them; 0 for none.
        lstm: units of an LSTM in its place that reads on alone; 0 for none.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512)
    out_features: int = 512
    dropout: float = 0.2
    encoder: str = "frames"
    weights: Path | None = None
    architecture: dict[str, Any] | None = None
    trained_layers: int | None = None
    rate: float = 1.0
    networks: tuple[NetworkConfig, ...] = ()
    blstm: int = 0
    lstm: int = 0


@dataclass(frozen=True)
class AttentionConfig:
    """How the frames of a stream become one vector, and one for each trunk.

    Attributes:
        hidden: A, width of the hidden layer of the score.
        scale: lambda, what the scores are multiplied by before the softmax; the larger, the
            sharper. A hyper-parameter in the paper.
        kind: one of `avemo.models.parts.ATTENTIONS`.
        learned: lambda is learned, from `scale` on.
        scale_in_training: lambda while weights learn, where that is another one: `scale` is then that of
            validation and of what is saved. A sharp attention from the start settles on the frames that it
            happens to begin with, and weights that still learn take a rising one back.
    """

    hidden: int = 128
    scale: float = 1.0
    kind: str = "self"
    learned: bool = False
    scale_in_training: float | None = None

    def __post_init__(self) -> None:
        other = self.scale_in_training
        if other is not None and (self.learned or min(other, self.scale) <= 0):
            raise ValueError(
                "attention.scale_in_training needs a lambda that is not learned, and both positive; "
                f"got {self}"
            )


@dataclass(frozen=True)
class FusionConfig:
    """The fusion of the two streams; which one it is, the model's name says.

    Attributes:
        global_features: O_G, outputs of the global level.
        global_factor: K_G, factors per output of the global level.
        trunk_features: O_M, outputs of the intra-trunk level.
        trunk_factor: K_M, factors per output of the intra-trunk level.
        trunks: H, equal parts of a clip's duration.
        adaptive: weigh the two global vectors of `am_fbp` by their norms (mu and eta).
        dropout: probability of dropping an element of the product before the sum over factors.
    """

    global_features: int = 128
    global_factor: int = 4
    trunk_features: int = 128
    trunk_factor: int = 4
    trunks: int = 8
    adaptive: bool = True
    dropout: float = 0.1


@dataclass(frozen=True)
class ModelConfig:
    """A model by name, and the sizes of its parts; a model takes no notice of parts it lacks.

    Attributes:
        name: one of `avemo.models.MODELS`.
        audio: the audio encoder.
        video: the video encoder.
        audio_attention: attention over the audio frames.
        video_attention: attention over the video frames.
        fusion: the bilinear fusion of both streams.
        dropout: probability of dropping a feature before the classifier.
        stream_loss: a fusion of vectors also learns to classify by each stream's own vector, in training alone: a
            fusion need not see in one stream what the other one tells.
        members: of an `ensemble`: for each, what is not as said here, such as its name.
    """

    name: str = "am_fbp"
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    video: VideoEncoderConfig = field(default_factory=VideoEncoderConfig)
    audio_attention: AttentionConfig = field(default_factory=AttentionConfig)
    video_attention: AttentionConfig = field(default_factory=AttentionConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    dropout: float = 0.3
    stream_loss: bool = False
    members: tuple[dict[str, Any], ...] = ()
