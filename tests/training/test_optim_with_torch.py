"""Optimizers and schedules against those of PyTorch and timm, if installed."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='PyTorch is not installed')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from resnet_jax import RECIPES, TrainConfig  # noqa: E402
from resnet_jax.training.config import optimizer_of, rate_of  # noqa: E402
from resnet_jax.training.muon import orthogonalized  # noqa: E402

# Kernels in PyTorch's layout, [out, in, kh, kw] and [out, in]; ours are [kh, kw, in, out] and [in, out].
SHAPES = {'stem/conv/kernel': (4, 2, 3, 3), 'stem/norm/scale': (4,), 'stem/norm/bias': (4,)}
SHAPES |= {'head/kernel': (3, 4), 'head/bias': (3,)}
KERNELS = ['stem/conv/kernel', 'head/kernel']
STEPS = 10


def ours(array):
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim])


def tree_of(flat):
    return {
        'stem': {
            'conv': {'kernel': flat['stem/conv/kernel']},
            'norm': {'scale': flat['stem/norm/scale'], 'bias': flat['stem/norm/bias']},
        },
        'head': {'kernel': flat['head/kernel'], 'bias': flat['head/bias']},
    }


def random_arrays(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def our_steps(config, steps_per_epoch=1):
    """Parameters by path after each step, in PyTorch's layout."""
    optimizer = optimizer_of(config, steps_per_epoch)
    params = tree_of({path: jnp.asarray(ours(value)) for path, value in random_arrays(0).items()})
    state, update, records = optimizer.init(params), jax.jit(optimizer.update), []
    for step in range(STEPS):
        grads = tree_of({path: jnp.asarray(ours(value)) for path, value in random_arrays(step + 1).items()})
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        flat = {
            'stem/conv/kernel': params['stem']['conv']['kernel'].transpose(3, 2, 0, 1),
            'stem/norm/scale': params['stem']['norm']['scale'],
            'stem/norm/bias': params['stem']['norm']['bias'],
            'head/kernel': params['head']['kernel'].T,
            'head/bias': params['head']['bias'],
        }
        records.append({path: np.asarray(value) for path, value in flat.items()})
    return records


def falling(*optimizers):
    """Linear decay of the learning rate from 0.05 to zero."""

    def after(step):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group['lr'] = 0.05 * (1 - step / STEPS)

    return after


def their_steps(make, schedule=falling, steps_per_epoch=1):
    """Like ``our_steps``, for ``make(params)``; ``schedule(optimizer)`` returns what to call after each epoch."""
    params = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in random_arrays(0).items()}
    optimizer, records = make(params), []
    after_epoch = schedule(optimizer)
    for step in range(STEPS):
        for path, value in random_arrays(step + 1).items():
            params[path].grad = torch.tensor(value)
        optimizer.step()
        records.append({path: value.detach().numpy().copy() for path, value in params.items()})
        if (step + 1) % steps_per_epoch == 0:
            after_epoch((step + 1) // steps_per_epoch)
    return records


def assert_same(found, expected, tolerance):
    for step, (left, right) in enumerate(zip(found, expected, strict=True)):
        for path, value in right.items():
            np.testing.assert_allclose(left[path], value, atol=tolerance, rtol=tolerance, err_msg=f'{step} {path}')


def groups(params, decay, decayed):
    """Two parameter groups, the first one with weight decay."""
    chosen = [value for path, value in params.items() if path in decayed]
    others = [value for path, value in params.items() if path not in decayed]
    return [{'params': chosen, 'weight_decay': decay}, {'params': others, 'weight_decay': 0.0}]


FIELDS = {'learning_rate': 0.05, 'epochs': STEPS, 'schedule': 'linear', 'weight_decay': 0.1, 'decayed': 'kernels'}


@pytest.mark.parametrize(
    ('name', 'nesterov', 'make'),
    [
        ('sgd', False, lambda g: torch.optim.SGD(g, 0.05, momentum=0.9)),
        ('sgd', True, lambda g: torch.optim.SGD(g, 0.05, momentum=0.9, nesterov=True)),
        ('adam', False, lambda g: torch.optim.Adam(g, 0.05)),
        ('adamw', False, lambda g: torch.optim.AdamW(g, 0.05)),
    ],
)
def test_torch_optimizers(name, nesterov, make):
    expected = their_steps(lambda params: make(groups(params, 0.1, KERNELS)))
    chosen = {'nesterov': nesterov} if name == 'sgd' else {}
    found = our_steps(TrainConfig().replace(optimizer=name, **chosen, **FIELDS))
    assert_same(found, expected, 5e-6)


def test_muon_direction_of_torch():
    """PyTorch's iteration runs in bfloat16, which has three digits."""
    muon = pytest.importorskip('torch.optim._muon')
    matrix = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    for some in (matrix, matrix.T):
        their = muon._zeropower_via_newtonschulz(torch.tensor(some.copy()), (3.4445, -4.7750, 2.0315), 5, 1e-7)
        np.testing.assert_allclose(orthogonalized(jnp.asarray(some)), their.float().numpy(), atol=0.03)


def test_torch_muon_on_matrices_and_adamw_on_the_rest(monkeypatch):
    """Runs PyTorch in float32 instead of bfloat16, to compare the algorithm without its rounding."""
    pytest.importorskip('torch.optim._muon')
    monkeypatch.setattr(torch.Tensor, 'bfloat16', torch.Tensor.clone)

    class Both:
        def __init__(self, params):
            self.kernel = params['stem/conv/kernel']
            self.matrix = torch.nn.Parameter(self.kernel.detach().reshape(4, -1).clone())
            options = {'adjust_lr_fn': 'match_rms_adamw', 'momentum': 0.9, 'weight_decay': 0.1}
            self.muon = torch.optim.Muon([self.matrix], 0.05, **options)
            rest = {path: value for path, value in params.items() if path != 'stem/conv/kernel'}
            self.adamw = torch.optim.AdamW(groups(rest, 0.1, KERNELS), 0.05)

        def step(self):
            self.matrix.grad = self.kernel.grad.reshape(4, -1)
            self.muon.step()
            self.adamw.step()
            self.kernel.data.copy_(self.matrix.detach().reshape(self.kernel.shape))

    expected = their_steps(Both, lambda both: falling(both.muon, both.adamw))
    assert_same(our_steps(TrainConfig().replace(optimizer='muon', momentum=0.9, **FIELDS)), expected, 2e-5)


def test_timm_lamb():
    optim = pytest.importorskip('timm.optim')
    expected = their_steps(lambda params: optim.Lamb(groups(params, 0.1, KERNELS), 0.05))
    assert_same(our_steps(TrainConfig().replace(optimizer='lamb', clip_norm=1.0, **FIELDS)), expected, 3e-6)


def test_timm_rmsprop_tf():
    optim = pytest.importorskip('timm.optim')
    expected = their_steps(lambda params: optim.RMSpropTF(groups(params, 0.1, KERNELS), 0.05, momentum=0.9))
    assert_same(our_steps(TrainConfig().replace(optimizer='rmsprop_tf', **FIELDS)), expected, 3e-6)


def test_timm_adaptive_clipping():
    """Clips all but the head, which timm excludes by name."""
    utils = pytest.importorskip('timm.utils.agc')

    class Clipped(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params.values(), 0.05)
            self.clipped = [value for path, value in params.items() if not path.startswith('head')]

        def step(self, closure=None):
            utils.adaptive_clip_grad(self.clipped, 0.3)
            return super().step(closure)

    fields = FIELDS | {'momentum': 0.0, 'weight_decay': 0.0}
    assert_same(our_steps(TrainConfig().replace(adaptive_clip=0.3, **fields)), their_steps(Clipped), 3e-6)


def test_ten_steps_of_torchvision_v2():
    """SGD with parameter groups; LinearLR, then CosineAnnealingLR, one step after each epoch."""
    config = RECIPES['torchvision_v2']

    def make(params):
        decayed = [path for path in SHAPES if 'norm' not in path]
        return torch.optim.SGD(groups(params, config.optimizer.weight_decay, decayed), 0.5, momentum=0.9)

    def schedule(optimizer):
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600 - 5)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[5])
        return lambda epoch: both.step()

    assert_same(our_steps(config), their_steps(make, schedule), 5e-6)  # into the cosine
    assert_same(our_steps(config, 3), their_steps(make, schedule, 3), 5e-6)


def test_all_rates_of_torchvision_v2():
    config, epochs = RECIPES['torchvision_v2'], 600
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - 5)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[5])
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        both.step()
    found = jax.vmap(rate_of(config, 1251))(1251 * np.arange(epochs) + 700)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(('warmup_epochs', 'share'), [(0.0, 0.3), (4.0, 0.2)])
def test_one_cycle_of_torch(warmup_epochs, share):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=100, pct_start=share, cycle_momentum=False)
    expected = []
    for step in range(100):
        expected.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        if step < 99:
            cycle.step()
    config = TrainConfig().replace(schedule='one_cycle', learning_rate=0.5, epochs=20, warmup_epochs=warmup_epochs)
    found = jax.vmap(rate_of(config, 5))(np.arange(100))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def timm_cosine(optimizer, epochs):
    from timm.scheduler import CosineLRScheduler

    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4)
    return scheduler.step


@pytest.mark.parametrize('recipe', ['rsb_a1', 'rsb_a2', 'rsb_a3'])
def test_ten_steps_of_resnet_strikes_back(recipe):
    """timm's LAMB with its clipping, and its per-epoch cosine that runs during the warmup."""
    optim, config = pytest.importorskip('timm.optim'), RECIPES[recipe]

    def make(params):
        return optim.Lamb(groups(params, config.optimizer.weight_decay, KERNELS), config.optimizer.learning_rate)

    for steps_per_epoch in (1, 3):
        expected = their_steps(make, lambda optimizer: timm_cosine(optimizer, config.epochs), steps_per_epoch)
        assert_same(our_steps(config, steps_per_epoch), expected, 3e-6)


@pytest.mark.parametrize('recipe', ['rsb_a1', 'rsb_a2', 'rsb_a3'])
def test_all_rates_of_resnet_strikes_back(recipe):
    pytest.importorskip('timm')
    config = RECIPES[recipe]
    optimizer, expected = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], config.optimizer.learning_rate), []
    step = timm_cosine(optimizer, config.epochs)
    for epoch in range(config.epochs):
        expected.append(optimizer.param_groups[0]['lr'])
        step(epoch + 1)
    found = jax.vmap(rate_of(config, 625))(625 * np.arange(config.epochs) + 300)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
