"""SE(3) and Sim(3): group axioms, exp/log at awkward angles, gradients at the identity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.geometry import pose
from worldline.geometry.pose import Similarity

FEW = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def random_pose(generator: torch.Generator, *batch: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return pose.se3_exp(torch.randn(*batch, 6, generator=generator, dtype=dtype))


def random_similarity(generator: torch.Generator, *batch: int) -> Similarity:
    p = random_pose(generator, *batch)
    scale = torch.randn(*batch, generator=generator, dtype=torch.float64).exp()
    return Similarity(scale=scale, rotation=p[..., :3, :3], translation=p[..., :3, 3])


def unit(generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)


@FEW
@given(seed=seeds)
def test_poses_form_a_group(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b, c = random_pose(g, 3, 4)
    eye = torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
    torch.testing.assert_close((a @ b) @ c, a @ (b @ c))
    torch.testing.assert_close(pose.inverse(a) @ a, eye)
    torch.testing.assert_close(a @ pose.inverse(a), eye)
    torch.testing.assert_close(pose.inverse(a @ b), pose.inverse(b) @ pose.inverse(a))
    points = torch.randn(4, 5, 7, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(pose.transform(a @ b, points), pose.transform(a, pose.transform(b, points)))


@FEW
@given(seed=seeds)
def test_similarities_form_a_group_and_act_on_points_vectors_and_cameras(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b, c = (random_similarity(g, 4) for _ in range(3))
    left, right = a.compose(b).compose(c), a.compose(b.compose(c))
    torch.testing.assert_close(left.matrix(), right.matrix())
    torch.testing.assert_close(a.compose(b).matrix(), a.matrix() @ b.matrix())
    torch.testing.assert_close(a.compose(a.inverse()).matrix(), torch.eye(4, dtype=torch.float64).expand(4, 4, 4))
    points, flow = torch.randn(2, 4, 6, 5, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(a.compose(b).apply(points), a.apply(b.apply(points)))
    torch.testing.assert_close(a.apply(points + flow) - a.apply(points), a.apply_vector(flow))
    # a camera moved with its points sees them in the same direction, a.scale times as far
    cam = random_pose(g, 4, 6)
    moved = a.apply_pose(cam)
    seen, seen_moved = pose.transform(pose.inverse(cam), points), pose.transform(pose.inverse(moved), a.apply(points))
    torch.testing.assert_close(seen_moved, a.scale[:, None, None, None] * seen)
    torch.testing.assert_close(torch.linalg.det(moved[..., :3, :3]), torch.ones(4, 6, dtype=torch.float64))


def test_identity_similarity_changes_nothing() -> None:
    points = torch.randn(4, 3)
    assert torch.equal(Similarity.identity().apply(points), points)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 4e-6)])
@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-7, 1e-4, 1e-2, 0.49999, 0.5, 0.50001, 1.0, 3.0, math.pi - 1e-4, math.pi - 1e-6]
)
def test_exp_and_log_round_trip_at_every_angle(angle: float, dtype: torch.dtype, tolerance: float) -> None:
    w = (unit(torch.Generator().manual_seed(1)) * angle).to(dtype)
    xi = torch.cat([torch.tensor([0.3, -2.0, 1.1], dtype=dtype), w])
    p = pose.se3_exp(xi)
    torch.testing.assert_close(p[:3, :3] @ p[:3, :3].mT, torch.eye(3, dtype=dtype), atol=tolerance, rtol=0)
    torch.testing.assert_close(pose.so3_exp(pose.so3_log(p[:3, :3])), p[:3, :3], atol=tolerance, rtol=0)
    torch.testing.assert_close(pose.se3_log(p), xi, atol=10 * tolerance, rtol=10 * tolerance)
    # reference: the matrix exponential of the twist
    twist = torch.zeros(4, 4, dtype=torch.float64)
    twist[:3, :3], twist[:3, 3] = pose.hat(w.double()), xi[:3].double()
    torch.testing.assert_close(p.double(), torch.linalg.matrix_exp(twist), atol=2 * tolerance, rtol=0)


def test_log_at_pi_gives_the_axis_up_to_sign() -> None:
    for axis in torch.cat([torch.eye(3), torch.randn(4, 3)]).double():
        axis = axis / axis.norm()
        rotation = 2 * axis[:, None] * axis[None] - torch.eye(3, dtype=torch.float64)  # exactly half a turn
        w = pose.so3_log(rotation)
        assert abs(float(w.norm()) - math.pi) < 1e-9
        assert abs(float((w / math.pi) @ axis)) > 1 - 1e-9


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.5, 2.0, 3.1])
def test_exp_and_log_are_differentiable(angle: float) -> None:
    xi = torch.cat([torch.randn(3).double(), unit(torch.Generator().manual_seed(2)) * angle]).requires_grad_()
    assert torch.autograd.gradcheck(pose.se3_exp, xi)
    jacobian = torch.autograd.functional.jacobian(lambda x: pose.se3_log(pose.se3_exp(x)), xi)
    torch.testing.assert_close(jacobian, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


@FEW
@given(seed=seeds)
def test_quaternions_are_wxyz_and_round_trip(seed: int) -> None:
    q = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)
    back = pose.matrix_to_quaternion(pose.quaternion_to_matrix(q))
    torch.testing.assert_close(back, q * q[:, :1].sign())
    quarter = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])  # 90 degrees about z
    torch.testing.assert_close(
        pose.quaternion_to_matrix(quarter) @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0
    )


def test_rotation_angle_is_in_degrees_and_sees_tiny_angles() -> None:
    for degrees in (0.0, 1e-4, 30.0, 179.0):
        r = pose.so3_exp(torch.tensor([0.0, math.radians(degrees), 0.0], dtype=torch.float64))
        assert abs(float(pose.rotation_angle_deg(torch.eye(3, dtype=torch.float64), r)) - degrees) < 1e-8


def test_relative_to_first_starts_at_the_identity_and_keeps_relative_motion() -> None:
    p = random_pose(torch.Generator().manual_seed(0), 5)
    q = pose.relative_to_first(p)
    torch.testing.assert_close(q[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(pose.inverse(q[2]) @ q[4], pose.inverse(p[2]) @ p[4])


def test_interpolation_ends_at_its_ends_and_turns_at_constant_speed() -> None:
    a, b = random_pose(torch.Generator().manual_seed(3), 2)
    torch.testing.assert_close(pose.interpolate(a, b, 0.0), a)
    torch.testing.assert_close(pose.interpolate(a, b, 1.0), b)
    third = pose.interpolate(a, b, 1 / 3)
    whole = pose.rotation_angle_deg(a[:3, :3], b[:3, :3])
    torch.testing.assert_close(pose.rotation_angle_deg(a[:3, :3], third[:3, :3]), whole / 3)
    torch.testing.assert_close(third[:3, 3], a[:3, 3] * 2 / 3 + b[:3, 3] / 3)


def test_transform_keeps_the_dtype_of_the_points_and_refuses_missing_batch_dimensions() -> None:
    p = random_pose(torch.Generator().manual_seed(0), 2)
    assert pose.transform(p, torch.randn(2, 4, 3)).dtype == torch.float32
    with pytest.raises(ValueError, match="leading dimensions"):
        pose.transform(p, torch.randn(3))
