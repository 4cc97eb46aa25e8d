"""Traces of one run over several devices, made when a plan hangs on them, and each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bench.predict.calibration import Calibration
from bench.predict.gpus import Gpu
from bench.predict.parallel import parallel_for
from bench.predict.plan import Plan, missed
from bench.predict.predict import predict
from bench.predict.prediction import Prediction
from bench.records import UserError

LONG = 20.0
"""Seconds that are announced."""
_FSDP_TIMES = 8.0
"""How many times as long FSDP's trace takes as that of one device."""

Choose = Callable[[Mapping[int, Prediction]], Plan | None]
"""Given the traces there are, by number of devices: the plan to take."""


class Traces:
    """The traces of a run over several devices.

    Args:
        single: its trace on one.
        constants: of the GPUs.
        say: is told when a trace is about to take long.

    """

    def __init__(
        self, single: Prediction, constants: Calibration, say: Callable[[str], None]
    ) -> None:
        """Have none yet."""
        self.single, self.constants, self.say = single, constants, say
        self.known: dict[int, Prediction] = {}
        self.reasons: dict[int, str] = {}
        """Why there is none, of numbers of devices that it was tried for."""

    def settled(self, choose: Choose, gpus: Iterable[Gpu]) -> Plan | None:
        """Return the plan that is chosen once all that it hangs on is traced, or can't be.

        Where there is none, the largest is traced if by the rules one of ``gpus`` nearly does.
        """
        while True:
            made = choose(self.known)
            if made is None:
                last = missed(self.single, gpus, self.constants)
                doubtful = [last] if last and last not in self.known else []
            else:
                doubtful = list(made.doubtful)
            left = [n for n in doubtful if n not in self.reasons]
            if not left:
                return made
            for count in left:
                self._trace(count)

    def _trace(self, count: int) -> None:
        parallel = parallel_for(self.single.spec, count)
        assert parallel is not None  # one device is never in doubt
        expected = float(self.single.facts.get("seconds", "0"))
        expected *= _FSDP_TIMES if parallel.layout == "fsdp" else 1.0
        if expected > LONG:
            self.say(f"Tracing {parallel.told()} GPUs: about {expected / 60:.0f} min ...")
        try:
            found = predict(self.single.spec, full=True, parallel=parallel)
            self.known[count] = found.calibrated(self.constants)
        except UserError as error:
            self.reasons[count] = str(error)
