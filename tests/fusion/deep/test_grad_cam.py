"""The map lies where what the answer needs is."""

import pytest
import torch
from torch import nn

from stages.fusion.deep.maths.grad_cam import grad_cam


class Bright(nn.Module):
    """Answers by the brightness of its input, seen by one filter that likes it and one that it does not look at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 2, 2, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.stem.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2) / 4)
            self.head.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        self.requires_grad_(False)

    def forward(self, pictures):
        return self.head(self.stem(pictures).mean((2, 3)))


def test_it_lights_up_where_the_answer_comes_from_and_not_for_the_opposite_answer():
    picture = torch.zeros(2, 1, 8, 8)
    picture[0, 0, 2:4, 4:6], picture[1, 0, 6:, :2] = 1, 1
    model = Bright()
    found = grad_cam(model, model.stem, picture, lambda logits: logits[:, 0])
    assert found.shape == (2, 4, 4)
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, 2] = expected[1, 3, 0] = 1 / 16  # brightness 1, times the gradient of a mean over 16 places
    torch.testing.assert_close(found, expected)
    assert (grad_cam(model, model.stem, picture, lambda logits: logits[:, 1]) == 0).all()


def test_films_have_three_axes():
    network = nn.Sequential(nn.Conv3d(1, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 1))
    found = grad_cam(network, network[0], torch.randn(2, 1, 4, 8, 8), lambda out: out[:, 0])
    assert found.shape == (2, 2, 4, 4) and (found >= 0).all() and not any(one.grad is not None for one in network.parameters())


def test_a_layer_that_is_not_used_or_has_no_places_is_an_error():
    model = Bright()
    with pytest.raises(ValueError, match="no output in 0 uses"):
        grad_cam(model, nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4), lambda logits: logits[:, 0])
    with pytest.raises(ValueError, match=r"output of \(1, 2\)"):
        grad_cam(model, model.head, torch.zeros(1, 1, 4, 4), lambda logits: logits[:, 0])
