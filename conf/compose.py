"""Composes a run's config from the YAML groups, the user's own config directories and overrides.

What comes out is plain dataclasses, every stage's config among them: nobody downstream knows of Hydra or OmegaConf.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from conf import auto_skip, refit
from conf.errors import SEE, ConfigError, suggest
from conf.groups import GROUPS, PACKAGE, check_own_directory, package_directory
from conf.quoting import quoted
from conf.schema import Config, Profile, Refit, Step, TensorSpec
from conf.trace import Trace, tracing
from conf.watch import watch
from stages import STAGES
from stages.allowed import NotAllowedError
from stages.data.options import Dataset, Images
from stages.wording import first_line

_one_at_a_time = Lock()
"""Hydra's search path is global, and steps that run in threads ask where a value came from."""

_OPEN = re.compile(r"(model\.(dims|profiles|inputs|(calibration|holdout)\.(images|dataset))|refit|steps)[.=]")
"""Mappings whose keys the user invents, or whose entries are checked afterwards: an override may add to them without
Hydra's `+`."""


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[Path] = (), trace: Trace | None = None) -> Config:
    """The config of one run.

    Args:
        overrides: Hydra's: `flow=fp16 targets=[l4] steps.build.config.optimization_level=5`.
        config_dirs: Directories of the user's own groups, beside the shipped ones.
        trace: Takes down what the config is made from.

    Raises:
        ConfigError: Anything is wrong with it.
    """
    with tracing(trace):
        composed = raw(overrides, config_dirs)
        choices = composed.hydra.runtime.choices
        if trace is not None and composed.hydra.job.env_copy:
            trace.unsure = "hydra.job.env_copy reads the environment"
        with _plain_errors():
            return _typed(composed, flow=str(choices.flow).removesuffix(".yaml"))


def raw(overrides: Sequence[str], config_dirs: Sequence[Path]) -> DictConfig:
    """The config as Hydra composes it: interpolations as they are written, and Hydra's own choices under `hydra`.

    Raises:
        ConfigError: Anything is wrong with it.
    """
    register()
    parsed = _parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: several values are a sweep", "sweep with -m: trtforge build -m …"
            )
    own, search = _own_directories(parsed, config_dirs), _search_path(config_dirs)
    with _one_at_a_time, _plain_errors(own), initialize_config_module(PACKAGE, version_base="1.3"):
        watch()
        return hydra_compose("config", [*search, *map(_opened, parsed)], return_hydra_config=True)


def sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[list[str]]:
    """Every combination of a sweep over overrides: `flow=fp16,int8 targets=[l4],[a10]` gives four.

    `model=glob(net_*)` stands for the models whose names match: of the user's own config directories where these have
    models, since a shipped `model=onnx` is none by itself; else of the shipped ones.

    Raises:
        ConfigError: An override cannot be parsed, or matches nothing.
    """
    choices = []
    parsed = _parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            key = override.get_key_element()
            globbed = override.value_type is ValueType.GLOB_CHOICE_SWEEP
            values = _matching(override, _own_directories(parsed, config_dirs)) if globbed else _values(override)
            choices.append([f"{key}={value}" for value in values])
        else:
            choices.append([cast(str, override.input_line)])
    return [list(combination) for combination in itertools.product(*choices)]


def options(group: str, overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> list[str]:
    """What can be chosen in `group`, shipped and of the user's own.

    Raises:
        ConfigError: A config directory is not there.
    """
    return _choices(group, _own_directories(_parse(overrides), config_dirs))


def register() -> None:
    """Tells Hydra the schema, and OmegaConf its resolvers.

    `${package:conf}` is the directory of an installed package; `${when:${model.source},torch,PATH}` is PATH where the
    source is torch, and null elsewhere.
    """
    ConfigStore.instance().store(name="schema", node=_schema())
    if not OmegaConf.has_resolver("package"):
        OmegaConf.register_new_resolver("package", package_directory)
        OmegaConf.register_new_resolver("when", _when)


def _when(value: object, wanted: str, then: str) -> str | None:
    return then if getattr(value, "value", value) == wanted else None


def _schema() -> DictConfig:
    schema = cast(DictConfig, OmegaConf.structured(Config))
    OmegaConf.set_readonly(schema.gates, False)  # a frozen dataclass is, and its values are still to come
    return schema


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(overrides=list(overrides))
    except HydraException as error:
        raise ConfigError(
            first_line(error),
            "an override is key=value; quote values that hold = ( ) or , : \"model.path='a=b.onnx'\"",
        ) from error
    for override in parsed:
        _check_choice(override)
    return parsed


def _check_choice(override: Override) -> None:
    # Hydra answers a choice that is no name with Python's own errors.
    group, value = override.key_or_group, override.value()
    if group not in GROUPS or override.is_delete() or override.is_sweep_override() or isinstance(value, dict):
        return
    if not all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])):
        raise ConfigError(
            f"{override.input_line}: {group} takes names, in quotes where they read as a number or null",
            f"name one: {group}={options(group)[0]}",
        )


def _values(override: Override) -> list[str]:
    try:
        return [str(value) for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(f"{override.input_line}: cannot be swept over", "list the values: flow=fp16,int8") from error


def _matching(override: Override, own: Sequence[Path]) -> list[str]:
    group = override.key_or_group
    if group not in GROUPS:
        raise ConfigError(
            f"{override.input_line}: glob chooses among the files of a group", f"groups are {', '.join(GROUPS)}"
        )
    names = _names(group, own) or _names(group, [Path(package_directory(PACKAGE))])
    found = cast(Glob, override.value()).filter(names)
    if not found:
        raise ConfigError(f"{override.input_line}: no {group} has such a name", suggest("", names))
    return found


def _opened(override: Override) -> str:
    line = cast(str, override.input_line)
    return f"++{line}" if line[0] not in "+~" and _OPEN.match(line) else line


def _own_directories(overrides: Sequence[Override], config_dirs: Sequence[Path]) -> list[Path]:
    """The user's own config directories, each of which is there and hides nothing that trtforge ships."""
    searched = [override for override in overrides if override.key_or_group == "hydra.searchpath"]
    if searched and config_dirs:
        raise ConfigError("hydra.searchpath and --config-dir are both given", "use one of the two")
    entries = searched[-1].value() if searched else []
    paths = [str(entry).removeprefix("file://") for entry in (entries if isinstance(entries, list) else ())]
    own = [*config_dirs, *(Path(path) for path in paths if "://" not in path)]
    for path in own:
        check_own_directory(path)
    return own


def _search_path(config_dirs: Sequence[Path]) -> list[str]:
    urls = (quoted(f"file://{path.absolute()}") for path in config_dirs)
    return [f"hydra.searchpath=[{','.join(urls)}]"] if config_dirs else []


def _typed(composed: DictConfig, flow: str) -> Config:
    with open_dict(composed):
        del composed["hydra"]
        composed.flow = flow
    # Once more against the schema: `+key=value` adds what the schema does not know.
    strict = cast(DictConfig, OmegaConf.merge(_schema(), OmegaConf.to_container(composed)))
    if strict.model.name is None:
        strict.model.name = _name_of(strict.model)
    written = OmegaConf.to_container(strict)
    try:
        _choose_layers(strict)
        _rewire(strict)
        _check_entries(strict)
    except NotAllowedError as error:
        raise ConfigError(str(error), _where_to_correct(error.key, written)) from error
    missing = sorted(OmegaConf.missing_keys(strict))
    if missing:
        raise ConfigError(f"not given: {', '.join(missing)}", f"say what: {missing[0]}=…")
    config = cast(Config, OmegaConf.to_object(strict))
    refit.check_mix(config.steps)
    return config


def _choose_layers(composed: DictConfig) -> None:
    """Gives a flow that asks for `skip=auto` the steps that find the layers."""
    steps = cast(auto_skip.Steps, OmegaConf.to_container(composed.steps, resolve=False))
    if auto_skip.is_asked(steps):
        composed.steps = auto_skip.rewired(steps, composed.gates, composed.flow)


def _rewire(composed: DictConfig) -> None:
    """Makes of `refit` its options, or null, and of the flow what they say."""
    given = OmegaConf.to_container(composed, resolve=False)["refit"]  # type: ignore[call-overload,index]
    composed.refit = refit.options(given)
    if composed.refit is None:
        return
    composed.refit = _checked(Refit, composed, "refit", "")
    steps = OmegaConf.to_container(composed.steps, resolve=False)
    composed.steps = refit.rewired(
        cast(refit.Steps, steps), cast(Refit, OmegaConf.to_object(composed.refit)), composed.flow
    )


def _name_of(model: DictConfig) -> str:
    if model.path:
        return Path(model.path).stem
    return str(model.entry_point or "model").partition(":")[0].rpartition(".")[2]


def _check_entries(composed: DictConfig) -> None:
    """Holds every entry of the open mappings against its dataclass."""
    model = composed.model
    for name in ("calibration", "holdout"):
        for key, schema in (("images", Images), ("dataset", Dataset)):
            if model[name][key] is not None:
                model[name][key] = _checked(schema, model[name], key, f"model.{name}")
        _require_allowed(model[name], f"model.{name}")
    for name in composed.targets:
        _require_allowed(composed.targets[name], f"targets.{name}")
    for name in model.inputs:
        model.inputs[name] = _checked(TensorSpec, model.inputs, name, "model.inputs")
    for profile, shapes in model.profiles.items():
        _require_mapping(f"model.profiles.{profile}", shapes, "give the shapes of its inputs: {x: {min, opt, max}}")
        for name in shapes:
            shapes[name] = _checked(Profile, shapes, name, f"model.profiles.{profile}")
    for name in composed.steps:
        _require_mapping(f"steps.{name}", composed.steps[name], f"to leave the step out: ~steps.{name}")
        if "stage" not in composed.steps[name]:
            others = [other for other in composed.steps if other != name]
            raise ConfigError(f"steps.{name}: the flow has no such step", suggest(name, others))
        composed.steps[name] = _checked(Step, composed.steps, name, "steps")
        step = composed.steps[name]  # OmegaConf keeps a copy of what it is given
        if step.stage not in STAGES:
            raise ConfigError(f"steps.{name}.stage: there is no stage {step.stage!r}", suggest(step.stage, STAGES))
        step.config = _checked(STAGES[step.stage].config, step, "config", f"steps.{name}")


def _unfreeze(node: DictConfig) -> None:
    # A frozen dataclass is read-only, and so is each inside of it; their values are still to come.
    OmegaConf.set_readonly(node, False)
    for name in node:
        inner = node._get_node(name)  # node[name] takes 20 times as long
        if isinstance(inner, DictConfig):
            _unfreeze(inner)


def _require_mapping(where: str, given: object, next_step: str) -> None:
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{where}: {given!r} is no mapping", next_step)


def _require_allowed(node: DictConfig, where: str) -> None:
    """Makes the dataclass of `node` and those inside of it, which refuse their values where these are wrong."""
    for name in map(str, node):
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            _require_allowed(node[name], f"{where}.{name}")
    if not OmegaConf.missing_keys(node):
        try:
            OmegaConf.to_object(node)
        except NotAllowedError as error:
            raise NotAllowedError(f"{where}.{error.key}", error.got, error.allowed) from error


def _where_to_correct(key: str, written: Any) -> str:
    for part in key.split("."):
        written = written.get(part) if isinstance(written, dict) else None
    return f"it is {written}: correct that" if isinstance(written, str) and "${" in written else SEE


def _resolved(parent: DictConfig, key: str) -> Any:
    node = parent._get_node(key)
    if isinstance(node, DictConfig) and not (node._is_interpolation() or node._is_missing() or node._is_none()):
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=False)  # its siblings would take seven times
    return OmegaConf.to_container(parent, resolve=True, throw_on_missing=False)[key]  # type: ignore[call-overload,index]


def _checked(schema: type[Any], parent: DictConfig, key: str, where: str) -> Any:
    # Interpolations see the whole config, so they are resolved before the node leaves it.
    given, path = _resolved(parent, key), f"{where}.{key}" if where else key
    typed = OmegaConf.structured(schema)
    _unfreeze(typed)
    try:
        merged = cast(DictConfig, OmegaConf.merge(typed, given))
    except ConfigKeyError as error:
        known = [str(name) for name in error.parent_node] if isinstance(error.parent_node, DictConfig) else []
        raise ConfigError(
            f"{path}.{error.full_key}: there is no such option", suggest(str(error.key), known)
        ) from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        name = getattr(error, "full_key", "")
        raise ConfigError(f"{path}{f'.{name}' if name else ''}: {first_line(error)}") from error
    _require_allowed(merged, path)
    return merged


def _choices(group: str, own: Sequence[Path]) -> list[str]:
    return _names(group, [Path(package_directory(PACKAGE)), *own])


def _names(group: str, directories: Sequence[Path]) -> list[str]:
    return sorted({path.stem for directory in directories for path in (directory / group).glob("*.yaml")})


@contextmanager
def _plain_errors(own: Sequence[Path] = ()) -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        raise _unknown_choice(error, own) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _wrong_value(error) from error
    except YAMLError as error:
        raise ConfigError(f"a YAML file cannot be read: {' '.join(str(error).split())}") from error


def _unknown_choice(error: MissingConfigException, own: Sequence[Path]) -> ConfigError:
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    if group not in GROUPS:
        return ConfigError(first_line(error), suggest(name, GROUPS))
    return ConfigError(f"{group}={name}: there is no {group} {name!r}", suggest(name, _choices(group, own)))


def _wrong_value(error: Exception) -> ConfigError:
    # Hydra names the file or the override, OmegaConf below it the key; of an error in a file it keeps only the context.
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    what = re.sub(r": \w+ raised while composing config:$", "", first_line(error)).replace("override ++", "override ")
    if not isinstance(cause, OmegaConfBaseException):
        return ConfigError(what)
    detail = what if cause is error else first_line(cause)
    if cause.full_key and cause.full_key not in what:
        detail = f"{cause.full_key}: {detail}"
    what = detail if cause is error else f"{what.rstrip('.')}: {detail}"
    known = [str(key) for key in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and known:
        return ConfigError(what, suggest(str(cause.key), known))
    if (cause.full_key or "").startswith("targets.") and "subclass of Target" in what:
        return ConfigError(what, "the first line of a target's file is `# @package targets.NAME`: docs/flows.md")
    return ConfigError(what)
