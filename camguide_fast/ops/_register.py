"""The only place where a backend is chosen: one schema, and a row of the torch dispatcher for each implementation.

Rows of an op: the reference twin (`CompositeExplicitAutograd`, every device); CPU = C++ if the extension `_C` was
built (it registers itself on import); CUDA = the launcher in `camguide_fast.kernels`, if its compiler is installed. A
missing row means the reference, to which the CUDA row turns as well where GPU or compiler cannot take the kernel.
`CAMGUIDE_FAST_BACKEND=reference` leaves only the first row.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ._backends import NAMESPACE, kernels, serves, why_no_kernels

library = torch.library.Library(NAMESPACE, "DEF")


def define(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    kernel: tuple[str, str] | None = None,
) -> None:
    """Declares `schema` and fills its rows.

    `fake` gives the shapes to tracing. `kernel` names the module of `camguide_fast.kernels` whose function of the
    op's name serves CUDA, and the language it is written in ("triton" or "cuda"); the module is imported on the first
    call.
    """
    name = schema[: schema.index("(")]
    library.define(schema)
    library.impl(name, functools.partial(_call_reference, reference), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    kernels[name] = kernel
    if kernel and not why_no_kernels(kernel[1]):
        library.impl(name, functools.partial(_call_kernel, *kernel, name, reference), "CUDA")


def _call_reference(reference: Callable, *args):
    with torch.autocast(_first_tensor(args).device.type, enabled=False):  # a twin decides on its precision itself
        return reference(*args)


def _call_kernel(module: str, language: str, name: str, reference: Callable, *args):
    first = _first_tensor(args)
    # The row stands since the import, which must start neither CUDA nor CuPy; here there is a GPU to ask about.
    if not serves(language, first.device):
        return _call_reference(reference, *args)
    kernel = getattr(importlib.import_module(f"camguide_fast.kernels.{module}"), name)
    with torch.cuda.device_of(first):  # a launch goes to the current device
        return kernel(*args)


def _first_tensor(args: tuple) -> Tensor:
    return next(a for a in args if isinstance(a, Tensor))


def define_loss(
    schema: str, *, reference: Callable, count: Callable, kernel: tuple[str, str] | None = None, parts: int = 0
) -> None:
    """Declares a scalar loss whose input gradient is computed in the forward kernel.

    The op takes its differentiable input first and `bool need_grad` last and returns `(loss, grad, scale)`: grad = N
    * dloss/dinput in the input's dtype (empty without `need_grad`), scale = 1/N. Backward multiplies grad by scale and
    the upstream factor in fp32, so that fp16 does not underflow, and in place: grad belongs to it, a caller of the raw
    op must not hold on to it. `reference(*inputs)` is the twin, `count(*inputs)` gives N > 0 in the loss's dtype;
    neither takes `need_grad`. N need not be a number of pixels: any factor that keeps grad within the range of fp16
    does. With `parts`, the reference returns (loss, parts) and the op a fourth tensor: the [parts] values that the loss
    is made of, without gradient. To differentiate the gradient raises.
    """
    name = schema[: schema.index("(")]

    def results(*args) -> tuple[Tensor, ...]:  # the loss, and its parts if there are any
        return reference(*args) if parts else (reference(*args),)

    def row(x: Tensor, *args):
        *args, need_grad = args
        n = count(x, *args)
        if not need_grad:
            loss, *values = results(x, *args)
            return loss, x.new_empty(0), 1 / n, *values
        with _autograd_inside():
            leaf = x.detach().to(n.dtype).requires_grad_()  # wide: a gradient beyond fp16 is seen before it is rounded
            loss, *values = results(leaf, *args)
            (grad,) = torch.autograd.grad(loss * n, leaf)
        if x.dtype == torch.float16:  # an infinity would outlast every loss scale
            grad = grad.clamp(-65504, 65504)  # a NaN stays one
        return loss.detach(), grad.to(x.dtype).contiguous(), 1 / n, *(value.detach() for value in values)

    def fake(x: Tensor, *args):
        scalar = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
        grad = torch.empty_like(x, memory_format=torch.contiguous_format) if args[-1] else x.new_empty(0)
        return scalar, grad, torch.empty_like(scalar), *([scalar.new_empty(parts)] if parts else [])

    def save(ctx, inputs, output):
        _, grad, scale, *values = output
        ctx.mark_non_differentiable(grad, scale, *values)
        ctx.set_materialize_grads(False)  # or autograd makes zeros in the shape of grad for backward to ignore
        ctx.save_for_backward(grad, scale)
        ctx.others = len(inputs) - 1
        with _autograd_inside():
            ctx.origin = inputs[0][:0].clone()  # leads to the input and does not keep its memory

    def backward(ctx, upstream, *_):
        if upstream is None:  # an undefined gradient is 0
            return (None,) * (1 + ctx.others)
        grad, scale = ctx.saved_tensors
        result = once(name, lambda: _scaled(grad, upstream * scale), upstream, ctx.origin)
        return (result, *[None] * ctx.others)

    define(schema, reference=row, fake=fake, kernel=kernel)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=save, lib=library)


def once(op: str, gradient: Callable[[], Tensor], upstream: Tensor, origin: Tensor) -> Tensor:
    """gradient() inside a backward. Where autograd records it (`create_graph=True`), its own gradient, to what upstream
    and origin come from, raises: without a formula for it, autograd would take it for 0."""
    if not torch.is_grad_enabled():
        return gradient()
    with torch.no_grad():
        result = gradient()
    return torch.ops.camguide_fast._once(result, upstream, origin, op)


def _no_second_derivative(ctx, _):
    raise RuntimeError(f"{ctx.op} has no second derivative: its gradient cannot be differentiated")


# an op, not an `autograd.Function`: with a batch of gradients only ops reach the graph of what is in the batch
library.define("_once(Tensor result, Tensor upstream, Tensor origin, str op) -> Tensor")
library.impl("_once", lambda result, upstream, origin, op: result.clone(), "CompositeExplicitAutograd")
torch.library.register_fake(
    f"{NAMESPACE}::_once", lambda result, upstream, origin, op: torch.empty_like(result), lib=library
)
torch.library.register_autograd(
    f"{NAMESPACE}::_once",
    _no_second_derivative,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "op", inputs[-1]),
    lib=library,
)


def _scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """grad * factor inside a backward: in place, since a gradient is the largest tensor there, unless it will be needed
    as it was: by another backward through a kept graph, by the other factors of a batch (`is_grads_batched`), or by
    tracing, whose tensors are of other types."""
    # torch's stubs lack both modules
    autograd, functorch = torch._C._autograd, torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    kept = autograd._get_current_graph_task_keep_graph()
    if kept or functorch.is_legacy_batchedtensor(factor) or type(grad) is not Tensor:
        return (grad.to(factor.dtype) * factor).to(grad.dtype)
    torch.ops.camguide_fast.scale_gradient_(grad, factor)
    return grad


def needs_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


@contextmanager
def _autograd_inside() -> Iterator[None]:
    """Lets a dispatcher row use autograd: a row runs below the autograd keys, which are switched on again for its
    length."""
    key = torch._C.DispatchKey
    with torch._C._PreserveDispatchKeyGuard(), torch.enable_grad():
        for excluded in (key.AutogradFunctionality, key.AutogradOther, key.AutogradNestedTensor, key.ADInplaceOrView):
            torch._C._dispatch_tls_set_dispatch_key_excluded(excluded, False)
        yield
