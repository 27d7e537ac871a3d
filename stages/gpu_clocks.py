"""The clocks that a GPU ran at, as NVML tells them: read, never set.

NVML does not say whether clocks are locked. What it says is which clock it reads and why that is no higher: clocks that
read the same throughout, with no reason but an idle GPU, were steady, whoever held them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.stage import JSON

_IDLE = 1
"""The bit that stands for a GPU with nothing to do: no reason to doubt a time."""


@dataclass
class Clocks:
    """What was read so far.

    Attributes:
        sm_mhz: The SMs' clock, in MHz, at each reading.
        highest_mhz: The highest that the GPU has.
        reasons: Why it was lower, in NVML's words, at any reading.
        driver: The driver's version.
        unread: Why nothing was read; None where something was.
    """

    sm_mhz: list[int] = field(default_factory=list)
    highest_mhz: int | None = None
    reasons: set[str] = field(default_factory=set)
    driver: str | None = None
    unread: str | None = None

    @property
    def steady(self) -> bool | None:
        """Whether every reading was the same, and nothing held the clock down; None where nothing was read."""
        return len({*self.sm_mhz}) == 1 and not self.reasons if self.sm_mhz else None

    def told(self) -> dict[str, JSON]:
        """For reports."""
        return {
            "sm_mhz": {"min": min(self.sm_mhz), "max": max(self.sm_mhz)} if self.sm_mhz else None,
            "highest_sm_mhz": self.highest_mhz,
            "steady": self.steady,
            "held_down_by": sorted(self.reasons),
            "readings": len(self.sm_mhz),
            "unread": self.unread,
        }


class ClockReader:
    """Reads the clocks of one GPU into `clocks`; of one that NVML cannot tell of, only why.

    Args:
        uuid: As `stages.gpus.Gpu` has it.
    """

    def __init__(self, uuid: str) -> None:
        self.clocks = Clocks()
        self._nvml: Any = None
        self._device = 0
        try:
            from cuda.bindings import nvml

            nvml.init_v2()
            self._device = nvml.device_get_handle_by_uuid(uuid)
            self.clocks.highest_mhz = nvml.device_get_max_clock_info(self._device, nvml.ClockType.CLOCK_SM)
            self.clocks.driver = nvml.system_get_driver_version()
            self._nvml = nvml
        except ImportError as error:
            self.clocks.unread = f"cuda-python has no NVML ({error})"
        except Exception as error:  # NVML's errors, and those of a machine without it, have no common base
            self.clocks.unread = f"NVML: {' '.join(str(error).split()) or type(error).__name__}"

    def read(self) -> None:
        """Takes one reading: at the end of a measurement, while the clock is still what it was."""
        if self._nvml is None:
            return
        nvml = self._nvml
        try:
            self.clocks.sm_mhz.append(nvml.device_get_clock_info(self._device, nvml.ClockType.CLOCK_SM))
            mask = nvml.device_get_current_clocks_event_reasons(self._device)
        except nvml.NvmlError as error:
            self.clocks.unread = f"NVML: {error}"
            self._nvml = None
            return
        self.clocks.reasons |= {reason.name for reason in nvml.ClocksEventReasons if reason & mask & ~_IDLE}
