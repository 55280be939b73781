"""What ``make gpu`` does, in the order in which it is worth its time: a build, and three parts,
each of steps.

``check`` decides what is right, ``speed`` what is fast enough, ``more`` is all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_S = "--models efficientnetv2_s"
_LARGE = "--models efficientnetv2_m efficientnetv2_l"
_OURS = "--impl eager_nhwc effv2 effv2_graph"
_COMPILED = "--impl eager_nhwc compile_default effv2 effv2_graph"
_LATENCIES = "--impl eager_nhwc compile_default compile_reduce_overhead effv2 effv2_graph"
_TUNED = "--impl eager_nhwc compile_reduce_overhead compile_max_autotune effv2_graph"


@dataclass(frozen=True)
class Step:
    """Commands of this Python that run side by side, in most steps a single one.

    commands: as in a shell, with {folder} for where results go, {scratch} for what is thrown away
        (of each command its own), {seconds} and {minutes} for the time. sizes: further arguments of
        each, in the place of which a run at small sizes takes ``small``.
    share: of the part's time, relative to the steps that are left; least: seconds that are kept for
        it whatever the steps before it take.
    kernels: whether it is about single kernels, which are on then whatever a table says. A network
        is measured as its users have it, without what the tests found wrong.
    """

    name: str
    commands: tuple[str, ...]
    sizes: tuple[str, ...] = ("",)
    small: str = ""
    share: float = 1.0
    least: float = 10.0
    kernels: bool = False
    sanitizer: str = ""

    def words(self, small: bool, values: dict[str, str]) -> list[list[str]]:
        """The arguments of each command. Raises KeyError for a value that is not there."""
        sizes = [self.small] * len(self.commands) if small else self.sizes
        found = []
        for number, (command, more) in enumerate(zip(self.commands, sizes, strict=True)):
            own = {**values, "scratch": f"{values['scratch']}/{number}"}
            found.append([word.format(**own) for word in f"{command} {more}".split()])
        return found


_SMALL = "--small --rounds 2"
# Of many cases that are alike the first ones.
_BRIEF = f"{_SMALL} --time-budget 6"
_SUITES = "-m benchmarks {} --device cuda --out {{folder}} --time-budget {{seconds}}"


def _suites(
    name: str,
    suites: str,
    sizes: str,
    share: float = 1.0,
    least: float = 10.0,
    kernels: bool = False,
    small: str = _SMALL,
) -> Step:
    """Measures; begins no case when its time is over. suites: with the implementations."""
    command = _SUITES.format(suites)
    return Step(name, (command,), (sizes,), small, share, least, kernels)


def _primed(calls: Sequence[tuple[str, str]]) -> Step:
    """Suites that leave nothing but torch.compile's caches filled: its compiler works on one core
    for most of two minutes a network, and here both do at once. (What they measured meanwhile is no
    measurement.)"""
    command = f"{_SUITES.replace('folder', 'scratch')} --rounds 1"
    commands = tuple(command.format(suite) for suite, _ in calls)
    return Step("primed", commands, tuple(sizes for _, sizes in calls), _SMALL, 2, 0)


def _sanitized(tool: str) -> Step:
    command = "-m pytest tests/gpu/test_small.py -q -p no:cacheprovider"
    return Step(tool, (command,), kernels=True, sanitizer=tool)


#: Before any part: without the native library, Triton and ATen would be measured as ours.
BUILD = (
    Step("build", ("setup.py build_ext --inplace",), share=9, least=0),
    Step("native", ("-m benchmarks.native",)),
)
PARTS: dict[str, tuple[Step, ...]] = {
    "check": (
        Step(
            "tests", ("-m pytest tests/gpu -q --tb=short -p no:cacheprovider",),
            share=5, kernels=True,
        ),
        _suites("latency", f"latency {_OURS}", _S, share=2, least=45),
    ),
    "speed": (
        _suites("models", f"models {_OURS}", f"{_S} --batch 128", share=2, least=25),
        _suites(
            "operators",
            "depthwise expand_depthwise stem gate fused_mbconv project conv head "
            "--impl eager_nhwc effv2",
            f"{_S} --batch 128", share=4, least=60, kernels=True,
        ),
        _primed((
            ("models --impl compile_default", f"{_S} --batch 128"),
            ("latency --impl compile_default compile_reduce_overhead", _S),
        )),
        # On an H200 machine either takes half a minute with the compiler's caches filled; 30 s
        # ended the one in its last line and the other without a figure.
        _suites("compiled", f"models {_COMPILED}", f"{_S} --batch 128", share=2, least=45),
        _suites("latency", f"latency {_LATENCIES}", _S, share=2, least=45),
    ),
    "more": (
        _sanitized("memcheck"),
        Step(
            "tune",
            ("-m effv2_kernels tune --output {folder} --log {folder}/tuning.jsonl "
             "--minutes {minutes}",),
            ("--sizes 384 --batch 128 --candidates 4",),
            "--model efficientnetv2_b0 --sizes 64 --batch 1 --candidates 2 --minutes 0.2",
            3, kernels=True,
        ),
        _suites("train", "train", "", share=2),
        _suites("memory", "memory", ""),
        _suites("large", f"latency models {_COMPILED}", _LARGE, share=3),
        _suites("placement", "placement", "", small=_BRIEF),
        _suites("headline", "headline", "", share=2),
        _suites("autotuned", f"latency models {_TUNED}", _S, share=3),
        _suites("roofline", "roofline", _S, small=_BRIEF),
        _sanitized("racecheck"),
        _sanitized("initcheck"),
    ),
}  # fmt: skip
