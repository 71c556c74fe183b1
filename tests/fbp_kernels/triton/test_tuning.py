"""Which configuration a kernel runs with: the table, the search at a first call, the search that writes a table."""

import importlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fbp_kernels import tf32
from fbp_kernels.tools import tune
from fbp_kernels.triton import autotune, judge, tuning
from fbp_kernels.triton.tuning import Config, Key

KEY = Key("made_up", "half", "small")
SLOW, FAST, WRONG, BROKEN = (Config({"BLOCK": size}, 4, 2) for size in (16, 32, 64, 128))
SECONDS = {16: 8.0, 32: 2.0, 64: 1.0, 128: 0.5}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A table of one entry, and a process that has chosen nothing yet."""
    made = {"sm90": {"made_up": {"half": {"small": SLOW.entry()}}}}
    path = tmp_path / "table.json"
    path.write_text(tuning.text(made))
    monkeypatch.setattr(tuning, "TABLE", path)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "candidates", lambda key: [SLOW, FAST, WRONG, BROKEN])
    monkeypatch.setenv(autotune.ENVIRONMENT, str(tmp_path))
    monkeypatch.delenv(tuning.ENVIRONMENT, raising=False)
    _forget_table()
    yield made
    _forget_table()


def _forget_table() -> None:
    tuning.table.cache_clear()
    tuning.lookup.cache_clear()


class Gpu:
    """Stands in for a GPU: says how long a configuration takes, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = False
        self.timed: list[int] = []
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made Up (R) 9000")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(autotune, "_milliseconds", self.milliseconds)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        self.wrong: dict[int, str] = {}
        monkeypatch.setattr(
            judge,
            "verdicts",
            lambda key, configs, choose, device: [self.wrong.get(_block(c), "") for c in configs],
        )
        monkeypatch.setenv(tuning.ENVIRONMENT, "1")

    def milliseconds(self, call: Callable[[Config], object], config: Config) -> float:
        self.timed.append(config.blocks["BLOCK"])
        if config == BROKEN:
            raise RuntimeError("out of resource: shared memory")
        call(config)
        return SECONDS[config.blocks["BLOCK"]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def _block(config: Config) -> int:
    return config.blocks["BLOCK"]


def test_the_table_decides() -> None:
    assert tuning.run(KEY, "sm90", lambda config: config) == Config({"BLOCK": 16}, 4, 2)


@pytest.mark.parametrize(
    ("key", "architecture", "message"),
    [
        (KEY, "sm70", "made_up half small on sm70: architecture is 'sm70', expected one of sm90"),
        (Key("mad", "half", "small"), "sm90", "kernel is 'mad', expected one of made_up"),
        (Key("made_up", "tf32", "small"), "sm90", "dtype is 'tf32', expected one of half"),
        (Key("made_up", "half", "tiny"), "sm90", "size is 'tiny', expected one of small"),
    ],
)
def test_a_missing_entry_is_named(key: Key, architecture: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        tuning.run(key, architecture, lambda config: config)


def test_a_table_is_written_as_it_is_read(table: dict[str, Any]) -> None:
    text = tuning.text(table)
    assert json.loads(text) == table
    assert '        "small": {"BLOCK": 16, "warps": 4, "stages": 2}\n' in text
    assert tuning.entries("sm90") == {KEY: SLOW}
    assert tuning.entries("sm80") == {}


def test_sizes_are_written_in_their_order() -> None:
    entry = SLOW.entry()
    made = {"sm90": {"k": {"half": {"large": entry, "small": entry, "medium": entry}}}}
    assert list(json.loads(tuning.text(made))["sm90"]["k"]["half"]) == list(tuning.SIZES)


def test_candidates_are_a_list_or_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(tuning, "MODULES", ("tests.fbp_kernels.triton.small",))
    from . import small

    key = Key("small_product", "half", "small")
    assert [c.blocks["BLOCK"] for c in tuning.candidates(key)] == [64, 128]
    monkeypatch.setitem(
        small.CANDIDATES,
        "small_product",
        lambda key: [FAST] if key.dtype == "half" else [SLOW],  # type: ignore[arg-type]
    )
    assert tuning.candidates(key) == [FAST]
    with pytest.raises(LookupError, match="has candidates for 'made_up'"):
        tuning.candidates(KEY)


def test_tf32_is_what_pytorch_may_do() -> None:
    assert tuning.dtype_class(torch.bfloat16) == tuning.dtype_class(torch.float16) == "half"
    with tf32.products(False):
        assert tuning.dtype_class(torch.float32) == "float32"
    with tf32.products(True):
        assert tuning.dtype_class(torch.float32) == "tf32"
        assert tuning.dtype_class(torch.bfloat16) == "half"


def test_the_first_call_searches_and_the_choice_holds(gpu: Gpu) -> None:
    launched: list[int] = []
    for _ in range(3):
        tuning.run(KEY, "sm90", lambda config: launched.append(_block(config)))
    assert gpu.timed == [16, 32, 64, 128]  # once each
    assert launched == [16, 32, 64, 64, 64, 64]  # the search, then three calls


def test_what_is_wrong_is_not_chosen_however_fast(gpu: Gpu) -> None:
    gpu.wrong = {64: "result 0 has other bits the second time"}
    assert tuning.run(KEY, "sm90", _block) == 32
    assert gpu.timed == [16, 32, 128]


def test_a_wrong_entry_of_the_table_is_told_and_not_taken(gpu: Gpu) -> None:
    gpu.wrong = {16: "result 0 is off by 1", 64: "result 0 is off by 2"}
    with pytest.warns(UserWarning, match=r"for made_up half small is wrong .*another is taken: re"):
        assert tuning.run(KEY, "sm90", _block) == 32
    tuning._chosen.clear()
    assert tuning.run(KEY, "sm90", _block) == 32
    next(autotune.folder().glob("*.json")).unlink()
    tuning._chosen.clear()
    gpu.wrong = dict.fromkeys((16, 32, 64, 128), "result 0 is off by 1")
    with pytest.warns(UserWarning, match="and so is every other that was tried"):
        assert tuning.run(KEY, "sm90", _block) == 16


def test_where_nothing_runs_that_is_said() -> None:
    def fails(config: Config) -> float:
        raise RuntimeError(f"out of resource: {_block(config)}")

    with pytest.raises(RuntimeError, match="out of resource: 16"):
        autotune.fastest(SLOW, [SLOW, FAST], fails)


def test_another_process_takes_the_choice_from_disk(gpu: Gpu, tmp_path: Path) -> None:
    import triton

    tuning.run(KEY, "sm90", _block)
    path = tmp_path / "fbp_kernels" / "1" / f"made-up-r-9000-{triton.__version__}.json"
    assert json.loads(path.read_text()) == {"made_up half small": WRONG.entry()}
    tuning._chosen.clear()
    gpu.timed.clear()
    assert tuning.run(KEY, "sm90", _block) == 64
    assert gpu.timed == []


def test_a_choice_that_is_no_candidate_any_more_is_replaced(gpu: Gpu) -> None:
    tuning.run(KEY, "sm90", _block)
    (path,) = autotune.folder().glob("*.json")
    path.write_text(json.dumps({str(KEY): {"OTHER": 16, "warps": 4, "stages": 2}}))
    tuning._chosen.clear()
    assert tuning.run(KEY, "sm90", _block) == 64
    assert json.loads(path.read_text()) == {"made_up half small": WRONG.entry()}


def test_while_a_stream_captures_the_table_decides_for_good(gpu: Gpu, tmp_path: Path) -> None:
    gpu.capturing = True
    assert tuning.run(KEY, "sm90", _block) == 16
    gpu.capturing = False
    assert tuning.run(KEY, "sm90", _block) == 16  # the same bits as in the graph
    assert gpu.timed == []
    assert not list(tmp_path.rglob("made-up*"))


def test_nothing_is_searched_for_off_a_gpu(gpu: Gpu, table: dict[str, Any]) -> None:
    table["interpreter"] = table["sm90"]
    tuning.TABLE.write_text(tuning.text(table))
    _forget_table()
    assert tuning.run(KEY, "interpreter", _block) == 16
    assert tuning.run(KEY, "sm90", _block, torch.device("meta")) == 16
    assert gpu.timed == []


def test_nothing_is_searched_for_unless_asked(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0"):
        monkeypatch.setenv(tuning.ENVIRONMENT, value)
        tuning._chosen.clear()
        assert tuning.run(KEY, "sm90", _block) == 16
    monkeypatch.setenv(tuning.ENVIRONMENT, "yes")
    tuning._chosen.clear()
    with pytest.raises(ValueError, match="FBP_AUTOTUNE is 'yes', expected 0 or 1"):
        tuning.run(KEY, "sm90", _block)
    assert gpu.timed == []


def test_a_gain_within_the_spread_is_none() -> None:
    times = {16: 1.0, 32: 0.985}
    assert autotune.fastest(SLOW, [SLOW, FAST], lambda c: times[_block(c)]) == SLOW
    times[32] = 0.97
    assert autotune.fastest(SLOW, [SLOW, FAST], lambda c: times[_block(c)]) == FAST


def test_a_lost_device_is_not_passed_over() -> None:
    def lost(config: Config) -> float:
        if config == FAST:
            raise torch.AcceleratorError("illegal memory access")
        return 1.0

    with pytest.raises(torch.AcceleratorError):
        autotune.fastest(SLOW, [FAST], lost)


def test_an_unreadable_file_is_told_and_rebuilt(gpu: Gpu) -> None:
    tuning.run(KEY, "sm90", _block)
    (path,) = autotune.folder().glob("*.json")
    for content in ('{"made_up half', "[1]", '{"k half small": 3}', '{"k half": {"warps": 1}}'):
        path.write_text(content)
        tuning._chosen.clear()
        with pytest.warns(UserWarning, match=r"cannot be read .*; its choices are searched for"):
            assert tuning.run(KEY, "sm90", _block) == 64
        assert json.loads(path.read_text()) == {"made_up half small": WRONG.entry()}


def test_where_nothing_can_be_kept_that_is_told(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(autotune.ENVIRONMENT, str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot"):
        assert tuning.run(KEY, "sm90", _block) == 64


def test_who_comes_second_takes_the_first_ones_choice(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    assert autotune.Choices(path).put(KEY, FAST) == FAST
    assert autotune.Choices(path).put(KEY, SLOW) == FAST
    assert autotune.Choices(path).put(KEY, SLOW, stale=FAST) == SLOW


def _put_many(path: Path, process: int) -> None:
    for number in range(20):
        key = Key(f"kernel{process}_{number}", "half", "small")
        autotune.Choices(path).put(key, Config({"BLOCK": process}, 4, number))


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_put_many, args=(path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for process in range(4):
        for number in range(20):
            kept = autotune.Choices(path).get(Key(f"kernel{process}_{number}", "half", "small"))
            assert kept == Config({"BLOCK": process}, 4, number)
    assert {p.name for p in tmp_path.glob("choices*")} == {"choices.json", "choices.lock"}


def test_choices_are_kept_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(autotune.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr("sys.platform", "linux")
    assert autotune.folder() == Path("/caches/fbp_kernels/1")


# The search that writes a table.

X = torch.linspace(-3, 3, 50, dtype=torch.bfloat16)
RACY = Config({"BLOCK": 256}, 4, 2)
OTHER = Key("another", "half", "small")
_launched: list[Config] = []


def _double(key: Key, x: Tensor) -> Tensor:
    """Twice x, by every configuration but three: one forgets the last element, one cannot run, one gives other bits."""
    z = torch.empty_like(x)

    def call(config: Config) -> None:
        if config == BROKEN:
            raise RuntimeError("out of resource: shared memory")
        _launched.append(config)
        count = len(x) - (config == WRONG)
        z[:count] = 2 * x[:count]
        if config == RACY and _launched.count(RACY) % 2:
            z[0] = z[0] * (1 + 2**-7)  # right by the rule

    tuning.run(key, "sm90", call)
    return z


def _reference(seed: int, dtype: torch.dtype) -> list[Tensor]:
    return [2 * X.to(dtype)]


SAMPLE = judge.Sample(lambda seed: [_double(KEY, X)], _reference, X.dtype)
BOTH = judge.Sample(
    lambda seed: [_double(OTHER, _double(KEY, X))],
    lambda seed, dtype: [4 * X.to(dtype)],
    X.dtype,
)


def _bench(seconds_left: Callable[[], float] = lambda: 1.0) -> tune.Bench:
    """Times a call by the configuration that it launches."""

    def time(call: Callable[[], object], milliseconds: float) -> tune.Timing:
        call()
        seconds = SECONDS[_block(_launched[-1])]
        return tune.Timing(0.9 * seconds, seconds, 1.1 * seconds)

    return tune.Bench(time, seconds_left)


def _among(
    *samples: judge.Sample, kernels: tuple[str, ...] = ("made_up", "another")
) -> list[tune.Found]:
    return list(tune.Search(kernels, _bench()).among(samples, "sm90"))


def _tabled(table: dict[str, Any], **entries: Config) -> None:
    table["sm90"] = {name: {"half": {"small": c.entry()}} for name, c in entries.items()}
    tuning.TABLE.write_text(tuning.text(table))
    _forget_table()


def test_the_fastest_that_is_right_wins(table: dict[str, Any]) -> None:
    search = tune.Search(["made_up"], _bench())
    (found,) = search.among([SAMPLE], "sm90")
    assert found.table == (SLOW, tune.Timing(7.2, 8.0, 8.8))
    assert found.best == (FAST, tune.Timing(1.8, 2.0, 2.2))
    assert found.tried == 2
    (wrong, why_wrong), (broken, why_broken) = found.left_out
    assert (wrong, broken) == (WRONG, BROKEN)
    assert why_wrong == "result 0 is not finite everywhere"
    assert why_broken == "does not run: RuntimeError: out of resource: shared memory"
    assert "table 8000.0 (7200.0 to 8800.0) us, best of 2: 2000.0" in str(found)
    assert "(4.00 times as fast)" in str(found)
    assert "WRONG" not in str(found)
    assert search.done == {KEY: found}
    table["sm80"] = json.loads(json.dumps(table["sm90"]))
    new = tune.merged(table, "sm90", [found])
    assert new["sm90"]["made_up"]["half"]["small"] == FAST.entry()
    assert new["sm80"]["made_up"]["half"]["small"] == SLOW.entry()
    assert table["sm90"]["made_up"]["half"]["small"] == SLOW.entry()


def test_the_tables_choice_stays_unless_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, 32, 7.9)
    (found,) = _among(SAMPLE)
    assert found.best == found.table == (SLOW, tune.Timing(7.2, 8.0, 8.8))


def test_a_configuration_that_gives_other_bits_the_second_time_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "candidates", lambda key: [RACY, FAST])
    (found,) = _among(SAMPLE)
    assert found.left_out == [(RACY, "result 0 has other bits the second time")]
    assert found.best is not None
    assert found.best[0] == FAST


@pytest.mark.parametrize("entry", [WRONG, RACY, BROKEN])
def test_a_wrong_entry_of_the_table_is_reported_and_replaced(
    entry: Config, table: dict[str, Any]
) -> None:
    """Though nothing of what is right is faster than it."""
    _tabled(table, made_up=entry)
    (found,) = _among(SAMPLE)
    assert found.table == (entry, None)
    assert found.best == (FAST, tune.Timing(1.8, 2.0, 2.2))
    assert found.table_wrong
    assert f"THE TABLE'S ENTRY IS WRONG and is replaced: {found.table_wrong}" in str(found)
    assert tune.merged(table, "sm90", [found])["sm90"]["made_up"]["half"]["small"] == FAST.entry()


def test_a_wrong_entry_of_another_kernel_is_found_out_first(table: dict[str, Any]) -> None:
    """Nothing of the first kernel is right before the second one's entry is replaced."""
    _tabled(table, made_up=SLOW, another=WRONG)
    other, first = _among(BOTH)
    assert (other.key, first.key) == (OTHER, KEY)
    assert other.table_wrong
    assert not first.table_wrong
    assert [found.best and found.best[0] for found in (other, first)] == [FAST, FAST]


def test_where_nothing_is_right_the_entry_stays_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    monkeypatch.setattr(tuning, "candidates", lambda key: [RACY, BROKEN])
    _tabled(table, made_up=WRONG)
    (found,) = _among(SAMPLE)
    assert (found.best, found.tried) == (None, 0)
    assert "no configuration is right" in str(found)
    assert "THE TABLE'S ENTRY IS WRONG and stays, for there is no other" in str(found)
    assert tune.merged(table, "sm90", [found]) == table
    assert not tune.Tuned([found], []).whole


def test_every_sample_that_comes_to_a_kernel_judges_it() -> None:
    """A configuration may be right in one and wrong in another, as with biases alone."""

    def doubled(seed: int) -> list[Tensor]:
        z = _double(KEY, X)
        return [z + (_launched[-1] == FAST)]

    picky = judge.Sample(doubled, _reference, X.dtype)
    (found,) = _among(SAMPLE, picky)
    assert found.best == found.table
    assert (FAST, "result 0 is off by") in [(c, why[:18]) for c, why in found.left_out]


@pytest.mark.parametrize(("kernels", "seconds"), [(("other",), 1.0), (("made_up",), 0.0)])
def test_what_is_done_or_not_asked_for_or_late_is_left(
    kernels: tuple[str, ...], seconds: float
) -> None:
    search = tune.Search(kernels, _bench(lambda: seconds))
    assert not list(search.among([SAMPLE], "sm90"))
    again = tune.Search(["made_up"], _bench())
    assert len(list(again.among([SAMPLE], "sm90"))) == 1
    assert not list(again.among([SAMPLE], "sm90"))


def test_a_kernel_is_not_called_wrong_because_the_time_was_up(table: dict[str, Any]) -> None:
    _tabled(table, made_up=WRONG)
    left = iter([1.0, 1.0, 0.0, 0.0])
    assert not list(tune.Search(["made_up"], _bench(lambda: next(left))).among([SAMPLE], "sm90"))


@pytest.mark.parametrize(("units", "right"), [(6, True), (7, False)])
def test_results_are_judged_by_the_rule_of_correctness(units: int, right: bool) -> None:
    """Twice the reference's error, which is one unit here, and one unit at the scale of 4."""
    truth, unit = torch.tensor([1.0, -4.0]), 2**-7

    def off(units: int) -> list[Tensor]:
        return [(truth + torch.tensor([units * unit, 0.0])).bfloat16()]

    def reference(seed: int, dtype: torch.dtype) -> list[Tensor]:
        return [truth.double()] if dtype == torch.float64 else off(1)

    sample = judge.Sample(lambda seed: off(units), reference, torch.bfloat16)
    why = judge.Judge(sample).why_wrong(KEY, SLOW)
    assert why == ("" if right else "result 0 is off by 5.469e-02, allowed are 4.688e-02")


def test_every_draw_of_few_numbers_is_judged() -> None:
    seen: set[int] = set()

    def ours(seed: int) -> list[Tensor]:
        seen.add(seed)
        return [torch.full((2,), float(seed))]

    def reference(seed: int, dtype: torch.dtype) -> list[Tensor]:
        return [torch.full((2,), float(seed), dtype=dtype)]

    assert judge.Judge(judge.Sample(ours, reference, torch.float32)).why_wrong(KEY, SLOW) == ""
    assert len(seen) > 1


class Pool:
    """Stands in for the processes that compile: notes what they are asked to compile."""

    asked: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, processes: int) -> None:
        self.asked.clear()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def apply_async(self, function: object, arguments: tuple[Any, ...]) -> "Pool":
        assert function is tune._compile
        self.asked.append(arguments)
        return self

    def wait(self, seconds: float) -> None:
        assert seconds >= 0


def _products(
    module: str, size: str, dtype: torch.dtype, device: torch.device
) -> list[judge.Sample]:
    """The small family's product, which runs in the interpreter."""
    small = importlib.import_module(module)
    generator = torch.Generator().manual_seed(0)
    a, p = (torch.randn(s, generator=generator).to(dtype) for s in ((32, 256), (256, 128)))

    def reference(seed: int, wide: torch.dtype) -> list[Tensor]:
        return [a.to(wide) @ p.to(wide)]

    made = judge.Sample(lambda seed: [small.forward(a, p)], reference, dtype)
    return [made] if size == "small" else []


def test_a_whole_search_writes_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the GPU: kernels run in the interpreter, the timer is made up."""
    name = "tests.fbp_kernels.triton.small"
    small = importlib.import_module(name)
    first, second = small.CANDIDATES["small_product"]
    default = Config({"BLOCK": 32, "BLOCK_C": 64}, 4, 2)
    sizes = {"small": default.entry()}
    made = {"interpreter": {"small_product": dict.fromkeys(("half", "tf32", "float32"), sizes)}}
    made["sm90"] = made["interpreter"]
    tuning.TABLE.write_text(tuning.text(made))
    _forget_table()
    monkeypatch.setattr(tuning, "MODULES", (name,))
    monkeypatch.setattr(tuning, "candidates", lambda key: [first, second])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made Up 9000")
    monkeypatch.setattr(tune, "get_context", lambda method: SimpleNamespace(Pool=Pool))
    monkeypatch.setattr(judge, "samples", _products)
    # The table's, the first and the second candidate; then, the fastest first, the three once more.
    times = iter([3.0, 2.0, 1.0, 1.5, 2.5, 3.5] * 3)

    def time(call: Callable[[], object], milliseconds: float) -> tune.Timing:
        call()
        median = next(times)
        return tune.Timing(median, median, median)

    monkeypatch.setattr(tune, "_time", time)
    out = tmp_path / "new.json"
    tuned = tune.tune(["small_product"], 60, out, 2)
    assert tuned.whole
    found = tuned.found
    assert [one.key.dtype for one in found] == ["half", "tf32", "float32"]
    assert all(one.tried == 3 and not one.left_out for one in found)
    assert len(Pool.asked) == 3 * 3 * 2  # sizes, dtypes, candidates
    assert (name, "small", "half", 90, 1) in Pool.asked
    new = json.loads(out.read_text())
    assert new["sm90"] == made["sm90"]
    best = [new["interpreter"]["small_product"][d]["small"] for d in ("half", "tf32", "float32")]
    assert best == [second.entry()] * 3
    assert {(one.table[1].median, one.best[1].median) for one in found} == {(3.5, 1.5)}
    assert "3 searched for on Made Up 9000, 0 left" in capsys.readouterr().out
    tuned = tune.tune(["small_product"], 0, out, 2)
    assert (tuned.found, tuned.whole) == ([], False)
    assert "left: small_product half small" in capsys.readouterr().out


def test_there_has_to_be_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tune.main([])
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            tune.main([])
        assert "PyTorch finds no GPU here" in capsys.readouterr().err


def test_the_committed_table_serves_every_architecture_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    _forget_table()
    keys = {name: set(tuning.entries(name)) for name in ("sm80", "sm90", "sm100", "interpreter")}
    assert keys["sm80"]
    for name, found in keys.items():
        assert found == keys["sm80"], name
    modules = [importlib.import_module(module) for module in tuning.MODULES]
    known = {kernel for module in modules for kernel in module.CANDIDATES}
    assert {key.kernel for key in keys["sm80"]} == known
    for key in keys["sm80"]:
        blocks = set(tuning.lookup(key, "sm90").blocks)
        candidates = tuning.candidates(key)
        assert candidates
        assert all(set(config.blocks) == blocks for config in candidates), key


def test_a_reason_is_the_first_cause_in_one_line() -> None:
    error = RuntimeError("while compiling")
    error.__cause__ = ValueError("at 3:4:\n  x = y\n      ^\nno such thing\n  ^\n")
    assert tuning.reason(error) == "ValueError: no such thing"
    assert tuning.reason(KeyError()) == "KeyError: "
