"""The tasks by name, and how a run's task is made."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.given import qualified_name
from resnet_jax.settings import as_tuple
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.binary import Binary
from resnet_jax.tasks.multiclass import MultiClass
from resnet_jax.tasks.multilabel import MultiLabel
from resnet_jax.tasks.regression import Regression

TASKS: dict[str, type[Task]] = {
    'multiclass': MultiClass,
    'binary': Binary,
    'multilabel': MultiLabel,
    'regression': Regression,
}
DEFAULT_TASK = 'multiclass'

# What is taken wherever a task is asked for: a key of TASKS, a class, or an instance with fields of its own.
TaskLike = str | type[Task] | Task


def get_task(task: TaskLike = DEFAULT_TASK) -> Task:
    """The task of a name, a class or an instance; what is no instance has its default fields.

    Raises:
      InputError: an unknown name, or what is no task.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        if task in TASKS:
            return TASKS[task]()
        if ':' in task:
            raise InputError(f'task={task!r} is not built in; it must be given as a class or an instance')
        raise InputError(f'task={task!r} must be one of {", ".join(TASKS)}')
    if isinstance(task, type) and issubclass(task, Task):
        try:
            return task()
        except TypeError as error:
            raise InputError(f'task={task.__name__} needs arguments ({error}); an instance can be given') from error
    raise InputError(f'task={task!r} must be one of {", ".join(TASKS)}, or a subclass of Task or an instance of one')


def by_name(task: TaskLike) -> TaskLike:
    """The key of a built-in task with its default fields, which a record can hold; anything else as it is."""
    return next((name for name, kind in TASKS.items() if task is kind or task == kind()), task)


def make_task(
    task: TaskLike,
    loss: str | None = None,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> Task:
    """The task as a run trains it.

    Args:
      task: a name, a class, or an instance, whose fields stay where nothing else is asked for.
      loss: one of its known losses; None is the instance's, or the usual one.
      label_smoothing: as in ``Task``; 0 is the instance's.
      target_threshold: as in ``Task``; None is the instance's.
      statistics: from ``Task.statistics`` of the training targets, perhaps by way of JSON.

    Raises:
      InputError: an unknown task, or fields that it does not take.
    """
    found = get_task(task)
    fields: dict[str, Any] = {name: as_tuple(value) for name, value in (statistics or {}).items()}
    if loss:
        fields['loss'] = loss
    if label_smoothing:
        fields['label_smoothing'] = label_smoothing
    if target_threshold is not None:
        fields['target_threshold'] = target_threshold
    try:
        return dataclasses.replace(found, **fields)
    except TypeError as error:
        raise InputError(f'task={found.name} does not take {", ".join(fields)} ({error})') from error


def task_name(task: TaskLike) -> str:
    """What a record calls a task: the key of a built-in one, else ``module:QualName``."""
    kind = type(get_task(task))
    for name, known in TASKS.items():
        if kind is known:
            return name
    return qualified_name(kind)
