"""The built-in tasks by name, and construction of a run's task."""

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

# Accepted wherever a task is expected: a key of TASKS, a subclass of Task, or an instance.
TaskLike = str | type[Task] | Task


def get_task(task: TaskLike = DEFAULT_TASK) -> Task:
    """Returns the task for a name, a class or an instance; names and classes give default fields.

    Raises:
      InputError: an unknown name, or not a task.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        if task in TASKS:
            return TASKS[task]()
        if ':' in task:
            raise InputError(f'task={task!r} is not built in; pass it as a class or an instance')
        raise InputError(f'task={task!r} must be one of {", ".join(TASKS)}')
    if isinstance(task, type) and issubclass(task, Task):
        try:
            return task()
        except TypeError as error:
            raise InputError(f'task={task.__name__} needs arguments ({error}); pass an instance') from error
    raise InputError(f'task={task!r} must be one of {", ".join(TASKS)}, a subclass of Task, or an instance of one')


def by_name(task: TaskLike) -> TaskLike:
    """The name of a built-in task with default fields, for the record; anything else is returned unchanged."""
    return next((name for name, kind in TASKS.items() if task is kind or task == kind()), task)


def make_task(
    task: TaskLike,
    loss: str | None = None,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> Task:
    """Makes the task of a run.

    Args:
      task: a name, a class, or an instance, whose fields are kept unless replaced here.
      loss: one of its known losses; None keeps the instance's or the default.
      label_smoothing: as in ``Task``; 0 keeps the instance's.
      target_threshold: as in ``Task``; None keeps the instance's.
      statistics: result of ``Task.statistics`` for the training targets, possibly read from JSON.

    Raises:
      InputError: an unknown task, or fields that it does not have.
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
        raise InputError(f'task={found.name} does not support {", ".join(fields)} ({error})') from error


def task_name(task: TaskLike) -> str:
    """The name of a task in a record: the key of a built-in task, otherwise ``module:QualName``."""
    kind = type(get_task(task))
    for name, known in TASKS.items():
        if kind is known:
            return name
    return qualified_name(kind)
