"""Every kind of target: classes, yes or no, labels and values, each against what is simpler than a network.

python -m experiments.tasks                                               # all four on handwritten digits
python -m experiments.tasks --tasks=binary,regression --num_seeds=1 --epochs=10
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, training_flags
from experiments.comparison import spread, write_table
from resnet_jax import InputError, get_config, get_spec, train_seeds
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.training import metrics
from resnet_jax.training.evaluation import make_task, target_statistics
from resnet_jax.training.tasks import TASKS, Task

FLAGS = flags.FLAGS

training_flags.define_data_flags(default='digits')
flags.DEFINE_list('tasks', list(TASKS), 'Tasks to compare.')
flags.DEFINE_string('arch', 'resnet20', 'Architecture.')
flags.DEFINE_string('recipe', None, 'Training settings. Default: digits_quick for digits, else cifar_fast.')
flags.DEFINE_integer('epochs', None, "Passes over the training examples. Default: the recipe's.")
flags.DEFINE_integer('num_seeds', 3, 'Seeds of each network.', lower_bound=1)
flags.DEFINE_string('workdir', None, 'Folder for the runs and the table. Default: runs/tasks-DATASET.')

# What is shown of each task; all of it is in result.json.
SHOWN = {
    'multiclass': ('accuracy', 'f1'),
    'binary': ('accuracy', 'roc_auc'),
    'multilabel': ('accuracy', 'average_precision'),
    'regression': ('r2', 'mae'),
}
_COLUMNS = ('task', 'metric', 'constant', 'linear', 'network')


def baseline_outputs(kind: str, task: Task, dataset: Dataset) -> np.ndarray:
    """What a constant or a linear model says of the test images, in the form of a network's outputs ``[N, K]``.

    The constant one gives every image the shares of the classes, or the mean value, in training; the linear one is
    scikit-learn's logistic regression, or ridge regression, on the pixels from 0 to 1, with its own default settings.
    """
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    pixels, unseen = (part.images.reshape(len(part), -1) / 255.0 for part in (dataset.train, dataset.test))
    targets = dataset.train.labels
    if task.name == 'regression':
        values = (targets - np.asarray(task.mean)) / np.asarray(task.std)  # type: ignore[attr-defined]
        model = DummyRegressor() if kind == 'constant' else Ridge()
        return model.fit(pixels, values).predict(unseen).reshape(-1, targets.shape[1]).astype(np.float32)

    def shares_of(labels: np.ndarray, classes: int) -> np.ndarray:
        constant = kind == 'constant' or len(set(labels.tolist())) == 1
        single = DummyClassifier(strategy='prior') if constant else LogisticRegression(max_iter=5000)
        shares = np.zeros((len(unseen), classes))
        found = single.fit(pixels, labels).predict_proba(unseen)
        shares[:, single.classes_] = found  # of classes without training images there are none
        return shares.clip(1e-12, 1 - 1e-12)

    if task.name == 'multiclass':
        return np.log(shares_of(targets, dataset.num_classes)).astype(np.float32)
    columns = targets.reshape(len(targets), -1).T
    positive = np.stack([shares_of(column, 2)[:, 1] for column in columns], axis=1)
    return np.log(positive / (1 - positive)).astype(np.float32)


def scores_of(outputs: np.ndarray, task: Task, dataset: Dataset) -> dict[str, float]:
    """The task's metrics of outputs for the test images."""
    targets, mask = dataset.test.labels, jnp.ones(len(dataset.test), bool)
    arrays = jnp.asarray(outputs), jnp.asarray(targets)
    sums = task.sums(task.losses(*arrays), *arrays, mask) | task.eval_sums(*arrays, mask)
    return task.summarize(metrics.add_up([sums])) | task.scores(outputs, targets)


def compare(name: str, dataset: Dataset, out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Metrics of both baselines, and of the networks as lists over the seeds."""
    recipe = FLAGS.recipe or common.default_recipe(dataset.name)
    config = get_config(recipe, dataset=dataset.name, task=name, **training_flags.set_flags(('image_size', 'epochs')))
    task = make_task(config, *target_statistics(dataset))
    found: dict[str, dict[str, Any]] = {
        kind: scores_of(baseline_outputs(kind, task, dataset), task, dataset) for kind in ('constant', 'linear')
    }
    result = train_seeds(get_spec(FLAGS.arch), config, out / name, FLAGS.num_seeds, arch=FLAGS.arch, dataset=dataset)
    found['network'] = {
        metric: [run[f'test_{metric}'] for run in result['runs']] for metric in found['linear'] if metric != 'loss'
    }
    return found


def main() -> None:
    if not FLAGS.tasks:
        raise InputError(f'tasks= must name some of {", ".join(TASKS)}')
    if unknown := [name for name in FLAGS.tasks if name not in TASKS]:
        raise InputError(f'tasks={",".join(FLAGS.tasks)}: unknown task {unknown[0]!r}; known: {", ".join(TASKS)}')
    dataset_name = FLAGS.dataset or 'digits'
    where = {'data_dir': FLAGS.data_dir, 'image_size': FLAGS.image_size}
    datasets = {name: load_dataset(dataset_name, task=name, **where) for name in FLAGS.tasks}
    out = pathlib.Path(FLAGS.workdir or f'runs/tasks-{common.as_file_name(dataset_name)}')
    found = {name: compare(name, dataset, out) for name, dataset in datasets.items()}
    rows = []
    for name, scores in found.items():
        for metric in (metric for metric in SHOWN[name] if metric in scores['linear']):
            mean, deviation = spread(scores['network'][metric])
            simple = (f'{scores[kind][metric]:.4f}' for kind in ('constant', 'linear'))
            rows.append((f'`{name}`', metric, *simple, f'{mean:.4f} ± {deviation:.4f}'))
    write_table(out, _COLUMNS, rows, dataset=dataset_name, arch=FLAGS.arch, scores=found)
    print(f'see {out}')


if __name__ == '__main__':
    common.run(main)
