"""A copy of a model's modules that shares its tensors: what is one thing, what is two, and whose rules it keeps."""

from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.sharing import shared_copy


class Tangled(nn.Module):
    """Modules under two names, in a list, in a plain attribute of another, and a way back to the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.again = self.first[0]
        self.others = [self.first[1], {"deep": self.again}]
        self.first.root = (self,)
        self.register_buffer("scale", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.get_buffer("scale")


def test_tensors_are_shared_and_modules_and_what_refers_to_them_are_new() -> None:
    model = Tangled().eval()
    made = shared_copy(model)
    assert [id(p) for p in made.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in made.buffers()] == [id(b) for b in model.buffers()]
    assert not {id(m) for m in made.modules()} & {id(m) for m in model.modules()}
    assert made.again is made.first[0]
    assert made.others[0] is made.first[1]
    assert made.others[1]["deep"] is made.again
    assert vars(made.first)["root"] == (made,)
    assert made.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3)
    assert torch.equal(made(x), model(x))


def test_hooks_come_along_and_those_of_the_copy_stay_there() -> None:
    model = Tangled().eval()
    model.again.register_forward_hook(lambda m, args, y: y + 1)
    made = shared_copy(model)
    assert torch.equal(made.again(torch.zeros(1, 3)), model.again(torch.zeros(1, 3)))
    made.again.register_forward_hook(lambda m, args, y: y + 1)
    made.first[1].register_forward_pre_hook(lambda m, args: None)
    made.again._parameters["weight"] = nn.Parameter(torch.zeros(3, 3))
    assert len(model.again._forward_hooks) == 1
    assert not model.first[1]._forward_pre_hooks
    assert not torch.equal(model.again.weight, made.again.weight)
    assert made.training is model.training is False


def test_a_class_with_its_own_rules_of_copying_keeps_them() -> None:
    class Counted(nn.Linear):
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
            Counted.copies += 1
            made = Counted(3, 3)
            made._parameters.update(self._parameters)
            return made

    model = nn.Sequential(Counted(3, 3), nn.ReLU())
    made = shared_copy(model)
    assert Counted.copies == 1
    assert made[0] is not model[0]
    assert made[0].weight is model[0].weight
