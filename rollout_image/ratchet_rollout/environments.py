"""Environments as the actor sees them: one interface over Gymnasium's ways to vectorize and to reset.

The three autoreset modes (https://farama.org/Vector-Autoreset-Mode) differ in what `step` returns when an
episode ends. `Environments.step` gives the same in all: what the policy sees next, and which steps count.
"""

import difflib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from ratchet.api.v1alpha1.training import Environment
from ratchet.policies import EnvironmentSpec, UnsupportedSpace
from ratchet_rollout.errors import ConfigError
from ratchet_rollout.spaces import describe

Flags = NDArray[np.bool_]


class Step(NamedTuple):
    """One step of N environments. The arrays may be reused by the next step.

    Attributes:
        observation: (N, …) what the policy sees next.
        reward: (N,), 0 where not valid.
        terminated: (N,) the step ended an episode in a final state.
        truncated: (N,) the step ended an episode by a limit.
        valid: (N,) False where the environment only reset itself, whatever the action.
        final_observation: (K, …) the successor observation of each truncated step, in order.

    """

    observation: NDArray[Any]
    reward: NDArray[np.floating[Any]]
    terminated: Flags
    truncated: Flags
    valid: Flags
    final_observation: NDArray[Any]


class Environments:
    """N copies of an environment, each in its own episode, that start the next episode by themselves."""

    def __init__(self, vector: VectorEnv[Any, Any, Any]) -> None:
        self._vector: Any = vector
        self.size = vector.num_envs
        threshold = vector.spec.reward_threshold if vector.spec is not None else None
        self.spec = EnvironmentSpec(
            observation=describe(self._vector.single_observation_space, "observation"),
            action=describe(self._vector.single_action_space, "action"),
            reward_threshold=threshold,
        )
        self.autoreset_mode = AutoresetMode(vector.metadata["autoreset_mode"])
        self._dtype = np.dtype(self.spec.observation.dtype)
        self._all = np.ones(self.size, np.bool_)
        self._none = np.empty((0, *self.spec.observation.shape), self._dtype)
        self._ended = np.zeros(self.size, np.bool_)

    def reset(self, seed: int) -> NDArray[Any]:
        """Starts every episode anew; (N, …) observations."""
        self._ended = np.zeros(self.size, np.bool_)
        return self._vector.reset(seed=seed)[0]

    def step(self, action: NDArray[Any]) -> Step:
        """Takes N actions, in the environment's own terms."""
        observation, reward, terminated, truncated, infos = self._vector.step(action)
        reward, valid, final = np.asarray(reward), self._all, self._none
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            # Where an episode ended one step ago, this step was its reset. Here the observation at an
            # episode's end is its last one, and the policy "sees" it in a step that does not count.
            just_reset = self._ended
            self._ended = terminated | truncated
            if just_reset.any():
                valid = ~just_reset
                reward, terminated, truncated = reward * valid, terminated & valid, truncated & valid
            if truncated.any():
                final = observation[truncated]
        else:
            ended = terminated | truncated
            if ended.any():
                if self.autoreset_mode is AutoresetMode.SAME_STEP:
                    if truncated.any():
                        final = self._reported_final(infos, truncated)
                else:
                    final = observation[truncated]
                    observation, _ = self._vector.reset(options={"reset_mask": ended})
        return Step(observation, reward, terminated, truncated, valid, final)

    def close(self) -> None:
        """Frees what the environments hold."""
        self._vector.close()

    def _reported_final(self, infos: dict[str, Any], truncated: Flags) -> NDArray[Any]:
        if "final_obs" not in infos:
            raise ConfigError(
                "the environment resets in the same step and does not report infos['final_obs']: a truncated "
                "episode can't be valued without it; write AutoresetMode.NEXT_STEP or add final_obs"
            )
        reported = infos["final_obs"]
        return np.stack([np.asarray(reported[i], self._dtype) for i in np.flatnonzero(truncated)])


def make(environment: Environment, size: int) -> Environments:
    """Builds `size` copies, vectorized by the environment itself if it can, else stepped one after the other.

    Raises:
        ConfigError: the environment does not exist, can't be imported or has spaces that no policy acts in.

    """
    named = environment.id or environment.entry_point
    try:
        if environment.id is not None:
            spec = _registered(environment.id)
            vector = _vectorized_by_itself(spec, environment, size) if spec.vector_entry_point else None
            return Environments(vector or _one_by_one(lambda: _make_registered(spec, environment), size))
        factory = _load(cast("str", environment.entry_point))
        return Environments(_one_by_one(lambda: _make_own(factory, environment), size))
    except UnsupportedSpace as error:
        raise ConfigError(f"environment {named}: {error}") from error
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ConfigError(
            f"environment {named} can't be imported ({error}): build an image FROM Ratchet's rollout image "
            "that has the package installed, and name it in environment.image"
        ) from error
    except TypeError as error:
        names = sorted(environment.kwargs)
        raise ConfigError(
            f"environment {named} can't be built with environment.kwargs {names}: {error}"
        ) from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"environment {named} can't be built: {' '.join(str(error).split())}") from error


def _registered(name: str) -> EnvSpec:
    module, _, local = name.rpartition(":")
    if module:
        importlib.import_module(module)
    try:
        return gymnasium.spec(local)
    except gymnasium.error.Error as error:
        known = {known.lower(): known for known in gymnasium.registry}
        close = [known[match] for match in difflib.get_close_matches(local.lower(), known, n=3, cutoff=0.65)]
        hint = f"did you mean {' or '.join(close)}?" if close else "no registered id is like it;"
        raise ConfigError(
            f"environment {name} is not registered with Gymnasium: {hint} An environment of your own goes "
            "into environment.entryPoint, with an image that has it in environment.image"
        ) from error


def _arguments(environment: Environment) -> dict[str, Any]:
    if environment.max_episode_steps is None:
        return dict(environment.kwargs)
    return {**environment.kwargs, "max_episode_steps": environment.max_episode_steps}


def _vectorized_by_itself(
    spec: EnvSpec, environment: Environment, size: int
) -> VectorEnv[Any, Any, Any] | None:
    try:
        vector = gymnasium.make_vec(spec, size, "vector_entry_point", **_arguments(environment))
    except (TypeError, gymnasium.error.Error):
        # Its vectorized form knows fewer arguments or no wrappers; the plain form may know them.
        return None
    if "autoreset_mode" in vector.metadata:
        return vector
    vector.close()
    return None


def _one_by_one(make_one: Callable[[], gymnasium.Env[Any, Any]], size: int) -> VectorEnv[Any, Any, Any]:
    # Without autoreset no step is lost to a reset, and the last observation of an episode is read before the
    # reset could overwrite it in an environment that reuses its arrays.
    return SyncVectorEnv([make_one] * size, copy=False, autoreset_mode=AutoresetMode.DISABLED)


def _make_registered(spec: EnvSpec, environment: Environment) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(spec, disable_env_checker=True, **_arguments(environment))


def _make_own(factory: Callable[..., Any], environment: Environment) -> gymnasium.Env[Any, Any]:
    made = factory(**environment.kwargs)
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(
            f"environment.entryPoint {environment.entry_point} returned {type(made).__name__}: it must "
            "return a gymnasium.Env"
        )
    env = cast("gymnasium.Env[Any, Any]", made)
    if environment.max_episode_steps is None:
        return env
    return gymnasium.wrappers.TimeLimit(env, environment.max_episode_steps)


def _load(entry_point: str) -> Callable[..., Any]:
    module_name, _, function = entry_point.partition(":")
    module = importlib.import_module(module_name)
    factory = getattr(module, function, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        close = difflib.get_close_matches(function, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "write the name of a function in it"
        raise ConfigError(f"environment.entryPoint: module {module_name} has no function {function}: {hint}")
    return factory
