"""Whether a device has done what it was given, and whether it still takes work."""

import torch


class DeviceLostError(RuntimeError):
    """A device takes no more work from this process, whoever asks: what was measured here is all there will be."""


def wait(device: str) -> None:
    """Waits until a device, "cpu" or "cuda", has done all that it was given; what failed in it raises here."""
    if device == "cuda":
        torch.cuda.synchronize()


def answers(device: str) -> bool:
    """Whether a device still works after an error. Some errors of CUDA stay with a process until it ends."""
    if device != "cuda":
        return True
    try:
        wait(device)
        return torch.ones((), device=device).item() == 1
    except RuntimeError:
        return False


def reason(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
