import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import dense
from strategies import generators

from lorsum import LowRank
from lorsum.nn import Layer, accuracy, backward, cross_entropy, forward, gradients, mlp


def network(sizes=(5, 4, 6, 3), rank=2, seed=0, batch=7, dtype=np.float64):
    """Layers whose adapters have left their zero start, and a batch for them."""
    rng = np.random.default_rng(seed)
    layers = tuple(
        layer._replace(adapter=LowRank(rng.normal(size=layer.adapter.U.shape).astype(dtype), layer.adapter.V))
        for layer in mlp(sizes, rank=rank, rng=rng, dtype=dtype)
    )
    X = rng.normal(size=(batch, sizes[0])).astype(dtype)
    return layers, X, rng.integers(0, sizes[-1], batch)


def with_dense_adapters(layers):
    return tuple(layer._replace(adapter=dense(layer.adapter)) for layer in layers)


def loss_of(layers, X, labels):
    return cross_entropy(forward(layers, X)[0], labels)[0]


def backpropagated(layers, X, labels):
    outputs, inputs = forward(layers, X)
    return backward(layers, inputs, cross_entropy(outputs, labels)[1])


def finite_differences(f, x, h=1e-6):
    """Central differences of a function of an array that is changed in place."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + h
        above = f()
        x[i] = kept - h
        gradient[i] = (above - f()) / (2 * h)
        x[i] = kept
    return gradient


# --- forward ---


def test_forward_is_the_dense_network():
    layers, X, _ = network()
    outputs, inputs = forward(layers, X)
    expected = X
    for k, layer in enumerate(layers):
        np.testing.assert_allclose(inputs[k], expected, rtol=1e-12)
        expected = expected @ (layer.weight + dense(layer.adapter)).T + layer.bias
        if k < len(layers) - 1:
            expected = np.tanh(expected)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


def test_mlp_starts_as_pytorch_and_lora_do():
    layers = mlp((784, 300, 100, 10), rank=8, rng=0)
    assert [layer.weight.shape for layer in layers] == [(300, 784), (100, 300), (10, 100)]
    for layer in layers:
        bound = layer.weight.shape[1] ** -0.5
        for parameter in (layer.weight, layer.bias, layer.adapter.V):
            assert parameter.dtype == np.float32
            assert 0.9 * bound < np.abs(parameter).max() <= bound * (1 + 1e-6) or parameter.size < 50
            assert np.abs(parameter).max() <= bound * (1 + 1e-6)
        np.testing.assert_array_equal(layer.adapter.U, 0)
        assert layer.adapter.rank == 8


def test_the_same_seed_gives_the_same_network():
    one, other = mlp((5, 4), rank=2, rng=0)[0], mlp((5, 4), rank=2, rng=np.random.default_rng(0))[0]
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.adapter.V, other.adapter.V)
    assert (mlp((5, 4), rank=2, rng=1)[0].weight != one.weight).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_stays_in_the_dtype_of_the_parameters(dtype):
    layers, X, labels = network(dtype=dtype)
    pairs = backpropagated(layers, X, labels)
    assert forward(layers, X)[0].dtype == dtype
    assert all(x.dtype == dtype for pair in pairs for x in pair)
    assert all(G.dtype == g.dtype == dtype for G, g in gradients(pairs))


# --- backward ---


@pytest.mark.parametrize("adapters", ["low-rank", "dense"])
def test_gradients_are_finite_differences(adapters):
    layers, X, labels = network()
    if adapters == "dense":
        layers = with_dense_adapters(layers)
    pairs = backpropagated(layers, X, labels)
    for layer, (G, bias_gradient) in zip(layers, gradients(pairs), strict=True):
        if adapters == "dense":
            checks = [(layer.adapter, dense(G)), (layer.weight, dense(G)), (layer.bias, bias_gradient)]
        else:
            U, V = layer.adapter
            checks = [(U, G @ V), (V, G.T @ U), (layer.weight, dense(G)), (layer.bias, bias_gradient)]
        for parameter, gradient in checks:
            expected = finite_differences(lambda: loss_of(layers, X, labels), parameter)
            np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    _, S = pairs[0]
    inputs_gradient = S @ (layers[0].weight + dense(layers[0].adapter))
    expected = finite_differences(lambda: loss_of(layers, X, labels), X)
    np.testing.assert_allclose(inputs_gradient, expected, rtol=1e-6, atol=1e-9)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(1, 6), st.integers(0, 99))
def test_gradients_are_those_of_autograd(sizes, batch, seed):
    torch = pytest.importorskip("torch")
    layers, X, labels = network(tuple(sizes), 1, seed, batch)
    tensors = [
        [torch.tensor(x, requires_grad=True) for x in (*layer.adapter, layer.weight, layer.bias)] for layer in layers
    ]
    x = torch.tensor(X, requires_grad=True)
    outputs = x
    for k, (U, V, weight, bias) in enumerate(tensors):
        outputs = torch.nn.functional.linear(outputs, weight + U @ V.T, bias)
        outputs = torch.tanh(outputs) if k < len(layers) - 1 else outputs
    loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(labels))
    loss.backward()

    assert loss_of(layers, X, labels) == pytest.approx(loss.item(), rel=1e-12, abs=1e-14)
    pairs = backpropagated(layers, X, labels)
    for layer, (G, g), (U, V, weight, bias) in zip(layers, gradients(pairs), tensors, strict=True):
        np.testing.assert_allclose(G @ layer.adapter.V, U.grad.numpy(), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(G.T @ layer.adapter.U, V.grad.numpy(), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(dense(G), weight.grad.numpy(), rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(g, bias.grad.numpy(), rtol=1e-9, atol=1e-13)
    inputs_gradient = pairs[0][1] @ (layers[0].weight + dense(layers[0].adapter))
    np.testing.assert_allclose(inputs_gradient, x.grad.numpy(), rtol=1e-9, atol=1e-13)


def test_a_single_layer_is_linear_regression_on_the_logits():
    layers, X, labels = network((5, 3))
    ((inputs, S),) = backpropagated(layers, X, labels)
    assert inputs is X
    np.testing.assert_array_equal(S, cross_entropy(forward(layers, X)[0], labels)[1])


def test_nothing_is_changed_in_place():
    layers, X, labels = network()
    before = [x.copy() for layer in layers for x in (layer.weight, *layer.adapter, layer.bias)]
    outputs, inputs = forward(layers, X)
    _, S = cross_entropy(outputs, labels)
    kept = outputs.copy(), S.copy(), [x.copy() for x in inputs]
    backward(layers, inputs, S)
    cross_entropy(outputs, labels)
    np.testing.assert_array_equal(outputs, kept[0])
    np.testing.assert_array_equal(S, kept[1])
    for x, y in zip([*inputs, *(x for layer in layers for x in (layer.weight, *layer.adapter, layer.bias))],
                    [*kept[2], *before], strict=True):  # fmt: skip
        np.testing.assert_array_equal(x, y)


# --- cross-entropy ---


@given(generators(), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 30.0, 1e4]))
def test_cross_entropy_is_that_of_torch(rng, batch, classes, size):
    torch = pytest.importorskip("torch")
    logits, labels = size * rng.normal(size=(batch, classes)), rng.integers(0, classes, batch)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels))
    expected.backward()
    loss, gradient = cross_entropy(logits, labels)
    assert type(loss) is float
    assert loss == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_do_not_overflow(dtype):
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4]], dtype)
    loss, gradient = cross_entropy(logits, np.array([2, 1]))
    assert loss == pytest.approx((2e4 + np.log(2)) / 2)
    np.testing.assert_allclose(gradient, [[0.5, 0, -0.5], [0, -0.25, 0.25]])
    assert cross_entropy(logits[:1], np.array([0]))[0] == 0


def test_a_shift_of_the_logits_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    labels = np.array([0, 1, 2, 0])
    assert cross_entropy(logits + 100, labels)[0] == pytest.approx(cross_entropy(logits, labels)[0], rel=1e-12)


def test_accuracy_is_the_share_of_hits():
    layer = Layer(np.eye(3), LowRank(np.zeros((3, 1)), np.zeros((3, 1))), np.zeros(3))
    assert accuracy([layer], np.eye(3), np.array([0, 1, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", ">f4", "f2"])
def test_integer_logits_do_not_wrap(dtype):
    """A difference of integers is no longer one of their own dtype."""
    top = 255 if dtype == "u1" else 100
    loss, gradient = cross_entropy(np.array([[0, top, 1]], dtype), [0])
    assert loss == pytest.approx(top, rel=1e-3)
    np.testing.assert_allclose(gradient, [[-1, 1, 0]], atol=1e-3)


def test_accuracy_wants_one_label_for_each_example():
    layer = Layer(np.eye(3), LowRank(np.zeros((3, 1)), np.zeros((3, 1))), np.zeros(3))
    for labels in ([0], [[0], [1], [2]], 0):  # which NumPy would broadcast
        with pytest.raises(ValueError, match="`labels` has shape"):
            accuracy([layer], np.eye(3), labels)


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: mlp((5,), rank=1), ValueError, "`sizes` is"),
        (lambda: mlp((5, 0), rank=1), ValueError, "`sizes` is 0"),
        (lambda: mlp((5, 2.5), rank=1), TypeError, "`sizes` is 2.5"),
        (lambda: mlp((5, 4, 3), rank=4), ValueError, "`rank` is 4, above min"),
        (lambda: mlp((5, 4, 3), rank=0), ValueError, "`rank` is 0"),
        (lambda: forward(mlp((5, 4), rank=1), np.ones((2, 4))), ValueError, r"`X` has shape \(2, 4\)"),
        (lambda: forward(mlp((5, 4), rank=1), np.ones(5)), ValueError, r"`X` has shape \(5,\)"),
        (lambda: forward(mlp((5, 4), rank=1), np.ones((1, 2, 5))), ValueError, "`X` has shape"),
        (lambda: cross_entropy(np.ones((2, 3)), np.array([0])), ValueError, r"`labels` has shape \(1,\)"),
        (lambda: cross_entropy(np.ones((2, 3)), np.array([[0], [1]])), ValueError, r"`labels` has shape \(2, 1\)"),
        (lambda: cross_entropy(np.ones((2, 3)), np.array([0, 3])), ValueError, "`labels` run from 0 to 3"),
        (lambda: cross_entropy(np.ones((2, 3)), np.array([-1, 0])), ValueError, "`labels` run from -1"),
        (lambda: cross_entropy(np.ones((2, 3)), [0.0, 1.0]), TypeError, "`labels` has dtype float64"),
        (lambda: cross_entropy(np.ones((2, 3)), [True, False]), TypeError, "`labels` has dtype bool"),
        (lambda: cross_entropy(np.ones((2, 3)), np.ma.array([0, 1])), TypeError, "`labels` is a masked array"),
        (lambda: cross_entropy(np.ma.ones((2, 3)), [0, 1]), TypeError, "`logits` is a masked array"),
        (lambda: cross_entropy(1j * np.ones((2, 3)), [0, 1]), ValueError, "`logits` has shape .* complex128"),
        (lambda: cross_entropy(np.ones((0, 3)), []), ValueError, r"`logits` has shape \(0, 3\)"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
