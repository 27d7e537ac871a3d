"""Which version of a backend would build a plan now: this machine's, or that of the workers of the plan's queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from artifacts.remote import Remote
from conf.schema import StoreConfig
from pipelines import announced
from pipelines.targets import gpus_here
from stages import backends
from stages.gpus import architecture


@dataclass(frozen=True)
class Builders:
    """What builds here and elsewhere.

    Attributes:
        store: Whose remote workers announce themselves in; it is asked for plans alone that this machine cannot build.
    """

    store: StoreConfig

    def version(self, backend: str, arch: str) -> str | None:
        """The version of `backend` that builds for an architecture; None where nobody is known to.

        Raises:
            StoreError: The remote cannot be used.
        """
        own = backends.installed_version(backend)
        if (own and (backends.find(backend).can_cross_build or arch in self._here)) or not self.store.remote:
            return own
        return self.elsewhere.get(arch, {}).get(backend, own)

    @cached_property
    def elsewhere(self) -> Mapping[str, Mapping[str, str]]:
        """Queue -> backend -> the highest version that a worker of it has announced and not taken back."""
        if not self.store.remote:
            return {}
        workers, _ = announced.known(Remote(self.store.remote, self.store.remote_limit_s))
        found: dict[str, dict[str, str]] = {}
        for worker in workers:
            versions = found.setdefault(worker.queue, {})
            for name, version in worker.versions.items():
                if name not in versions or backends.is_before(versions[name], version):
                    versions[name] = version
        return found

    @cached_property
    def _here(self) -> set[str]:
        return {architecture(gpu.compute_capability) for gpu in gpus_here().found}
