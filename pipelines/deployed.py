"""One deployment of `prefect.yaml`, and its automations, in Prefect's own types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import construct_schedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter, ValidationError

from pipelines import flows
from pipelines.changes import Change
from pipelines.deployments import Deployment, Deployments


class Made:
    """A deployment of the file in Prefect's own types."""

    def __init__(self, wanted: Deployments, deployment: Deployment) -> None:
        self.wanted, self.deployment, said = wanted, deployment, deployment.said
        self.name = deployment.name
        self.flow = _flow(wanted, deployment)
        self.full_name = f"{self.flow.name}/{self.name}"
        # As Prefect has it: what the flow's docstring says, where the file says nothing.
        self.description = said.get("description") or self.flow.description
        self.tags = sorted(said.get("tags") or [])
        self.parameters = dict(said.get("parameters") or {})
        self.job_variables = dict((said.get("work_pool") or {}).get("job_variables") or {})
        try:
            self.flow.validate_parameters(self.parameters)
            self.schedules = [_schedule(entry) for entry in said.get("schedules") or []]
            limit = said.get("concurrency_limit")
            self.limit = ConcurrencyLimitConfig(**limit) if limit else None
            self.triggers = [_trigger(self.name, n, entry) for n, entry in enumerate(said.get("triggers") or [], 1)]
        except (ValidationError, PrefectException, ValueError, TypeError) as error:
            raise wanted.wrong(deployment, _first_complaint(error)) from error

    def changes(self, client: SyncPrefectClient) -> list[Change]:
        """The deployment, then its automations."""
        try:
            there: DeploymentResponse | None = client.read_deployment_by_name(self.full_name)
        except ObjectNotFound:
            there = None
        now = None if there is None else fields_of(there)
        own = Change(f"deployment {self.full_name}", now, self._fields(), lambda: self._create(client))
        return [own, *(self._automation(client, trigger, there.id if there else None) for trigger in self.triggers)]

    def served(self) -> RunnerDeployment:
        """The same for a process that serves it, without pool and queue."""
        made = self.flow.to_deployment(
            name=self.name,
            parameters=self.parameters,
            tags=self.tags,
            description=self.description,
            schedules=self.schedules,
            concurrency_limit=self.limit,
            triggers=[*self.triggers],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(made, RunnerDeployment), "called outside of an event loop"  # noqa: S101
        return made

    def _fields(self) -> dict[str, Any]:
        return {
            "entrypoint": self.deployment.entrypoint,
            "parameters": self.parameters,
            "tags": self.tags,
            "description": self.description,
            "schedules": [_told_schedule(schedule) for schedule in self.schedules],
            "concurrency_limit": self.limit.limit if self.limit else None,
            "concurrency_options": _told_options(self._options()),
            "work_pool": self.wanted.pool,
            "work_queue": self.deployment.queue,
            "job_variables": self.job_variables,
            "pull": list(self.wanted.pull),
            "takes": _told_schema(parameter_schema(self.flow).model_dump(mode="json")),
        }

    def _options(self) -> ConcurrencyOptions | None:
        if self.limit is None:
            return None
        return ConcurrencyOptions(**self.limit.model_dump(exclude={"limit"}, exclude_none=True))

    def _create(self, client: SyncPrefectClient) -> UUID:
        return client.create_deployment(
            flow_id=client.create_flow_from_name(self.flow.name),
            name=self.name,
            entrypoint=self.deployment.entrypoint,
            parameters=self.parameters,
            tags=self.tags,
            description=self.description,
            schedules=self.schedules,
            concurrency_limit=self.limit.limit if self.limit else None,
            concurrency_options=self._options(),
            work_pool_name=self.wanted.pool,
            work_queue_name=self.deployment.queue,
            job_variables=self.job_variables,
            pull_steps=[dict(step) for step in self.wanted.pull],
            parameter_openapi_schema=parameter_schema(self.flow).model_dump(mode="json"),
            enforce_parameter_schema=True,
        )

    def _automation(self, client: SyncPrefectClient, trigger: DeploymentTriggerTypes, there: UUID | None) -> Change:
        def automation(deployment_id: UUID) -> AutomationCore:
            trigger.set_deployment_id(deployment_id)
            return trigger.as_automation()

        def apply() -> None:
            put(client, automation(client.read_deployment_by_name(self.full_name).id))

        name = str(trigger.name)
        # Without its deployment an automation is nothing: it is made anew with it.
        now = None if there is None else now_of(client, name)
        shall = {"name": name} if there is None else told(automation(there))
        return Change(f"automation {name}", now, shall, apply)


def _flow(wanted: Deployments, deployment: Deployment) -> Flow[Any, Any]:
    module, _, name = deployment.entrypoint.rpartition(".")
    found = getattr(flows, name, None) if module == flows.__name__ else None
    if not isinstance(found, Flow):
        ours = ", ".join(f"{flows.__name__}.{flow}" for flow in shipped_flows())
        raise wanted.wrong(deployment, f"there is no flow {deployment.entrypoint!r}; there are {ours}")
    return found


def _schedule(said: Mapping[str, Any]) -> DeploymentScheduleCreate:
    when = {name: said[name] for name in ("interval", "cron", "rrule") if said.get(name) is not None}
    if len(when) != 1:
        raise ValueError(f"a schedule takes one of cron, interval and rrule, not {', '.join(when) or 'none'}")
    rest = {name: said[name] for name in ("active", "slug", "parameters") if said.get(name) is not None}
    return DeploymentScheduleCreate(schedule=construct_schedule(**when, timezone=said.get("timezone")), **rest)


def _trigger(deployment: str, number: int, said: Mapping[str, Any]) -> DeploymentTriggerTypes:
    named = {"name": f"{automation_of(deployment)}{number}", **said}
    made: DeploymentTriggerTypes = TypeAdapter(DeploymentTriggerTypes).validate_python(named)
    return made


def shipped_flows() -> list[str]:
    """The functions of `pipelines.flows` that are flows."""
    return [name for name, value in vars(flows).items() if isinstance(value, Flow)]


def automation_of(deployment: str) -> str:
    """How the names of its automations begin: as `prefect deploy` has them, so that either finds the other's."""
    return f"{deployment}__automation_"


def put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Creates the automation, or changes the one of its name."""
    there = client.read_automations_by_name(automation.name)
    if there:
        # Whose it is cannot be changed, and the server refuses to be told.
        kept = automation.model_dump(exclude={"owner_resource"})
        client.update_automation(there[0].id, AutomationCore.model_validate(kept))
    else:
        client.create_automation(automation)


def now_of(client: SyncPrefectClient, automation: str) -> dict[str, Any] | None:
    """What the server has by this name, as `told` tells it."""
    there = client.read_automations_by_name(automation)
    return told(there[0]) if there else None


def told(automation: AutomationCore) -> dict[str, Any]:
    """The fields that a file decides; ids of the server's are none of them. Sets have no order, so they are sorted."""
    document = automation.model_dump(
        mode="json", include={"name", "description", "enabled", "trigger", "actions"}, exclude={"trigger": {"id"}}
    )
    for name in ("after", "expect", "for_each"):
        if isinstance(document["trigger"].get(name), list):
            document["trigger"][name].sort()
    return document


def fields_of(there: DeploymentResponse) -> dict[str, Any]:
    """A deployment of the server by the fields that a file decides."""
    limit = there.global_concurrency_limit
    return {
        "entrypoint": there.entrypoint,
        "parameters": there.parameters,
        "tags": sorted(there.tags),
        "description": there.description,
        "schedules": [_told_schedule(schedule) for schedule in there.schedules],
        "concurrency_limit": limit and limit.limit,
        "concurrency_options": _told_options(there.concurrency_options),
        "work_pool": there.work_pool_name,
        "work_queue": there.work_queue_name,
        "job_variables": there.job_variables,
        "pull": there.pull_steps or [],
        "takes": _told_schema(there.parameter_openapi_schema or {}),
    }


def _told_schedule(schedule: Any) -> dict[str, Any]:
    when = schedule.schedule.model_dump(mode="json", exclude_none=True, exclude={"anchor_date", "day_or"})
    own = {"active": schedule.active, "parameters": schedule.parameters, "slug": schedule.slug}
    return {**when, **{name: value for name, value in own.items() if value not in (None, {})}}


def _told_options(options: ConcurrencyOptions | None) -> dict[str, Any] | None:
    return options.model_dump(mode="json", exclude_none=True) if options else None


def _told_schema(schema: Mapping[str, Any]) -> list[str]:
    """The names of a flow's parameters: when trtforge gives it others, the deployment has to learn them."""
    return sorted(schema.get("properties") or {})


def _first_complaint(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split()) or type(error).__name__
