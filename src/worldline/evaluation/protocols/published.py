"""The protocols of the field as data: what is scored, after which alignment, how it is averaged, what to beware of.

Where a published script does something that a reader would not expect, the
choice is reproduced and `pitfall` says so. Sources are the papers' scripts as read in 2025 and 2026.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from worldline.evaluation.gauge import DepthGauge
from worldline.evaluation.pair import Frames
from worldline.evaluation.parts import DepthPart, PointPart
from worldline.evaluation.parts_camera import (
    PoseAucPart,
    TrajectoryPart,
)
from worldline.evaluation.parts_depth import StabilityPart
from worldline.evaluation.parts_motion import FlowPart, TrackPart
from worldline.evaluation.protocols.protocol import Dataset, Protocol

GEO4D_LAD = DepthGauge(estimator="scale_shift_adam_1e-2_5000")
MONST3R_LAD = DepthGauge(estimator="scale_shift_adam_1e-4_1000")
_BELOW_70 = (0.0, 70.0)
_BONN = "balloon2, crowd2, crowd3, person_tracking2, synchronous; frames 30 to 139 (110); depth png/5000"
_KITTI = "13 validation drives of val_selection_cropped, image_02, first 110 annotated frames; depth png/256"
_SINTEL_POSE = (
    "alley_2, ambush_4, ambush_5, ambush_6, cave_2, cave_4, market_2, market_5, market_6, shaman_3, sleeping_1, "
    "sleeping_2, temple_2, temple_3; final pass"
)
_POSE_SETS = MappingProxyType(
    {
        "sintel": Dataset(sequences=_SINTEL_POSE),
        "tum": Dataset(sequences="8 freiburg3 sitting/walking sequences, every 3rd frame, first 90"),
        "scannet": Dataset(sequences="every 3rd of the first 270 frames (90)"),
    }
)

_geo4d_depth = DepthPart(gauge=GEO4D_LAD, truth_range=_BELOW_70, clip_after=(None, 70.0), confident_fit=True)
_monst3r_depth = DepthPart(gauge=MONST3R_LAD, truth_range=_BELOW_70)
_cut3r_scale = DepthPart(gauge=DepthGauge(estimator="scale_weiszfeld10"), truth_range=_BELOW_70)
_depthcrafter = DepthPart(
    gauge=DepthGauge(estimator="scale_shift_l2", space="disparity"),
    metrics=("abs_rel", "delta_1.25"),
    truth_range=(1e-3, 70.0),
    clip_after=(1e-3, 70.0),
    pool="frames",
)
_world = PointPart()

PUBLISHED = (
    Protocol(
        name="motioncrafter-world",
        parts=(_world, FlowPart(points=_world, target="camera_relative")),
        frames=Frames(count=25, count_with_flow=8),
        resize="bilinear_corners",
        datasets=MappingProxyType(
            {
                "kubric": Dataset(sequences="0000 to 0060 without 0046, 18 frames, 320x640"),
                "spring": Dataset(sequences="37 training sequences in clips of 150 frames, 320x640"),
                "vkitti2": Dataset(sequences="5 scenes, 'clone', both cameras, 320x640"),
                "dynamic_replica": Dataset(sequences="20 test sequences x 6 clips, 320x640"),
                "point_odyssey": Dataset(sequences="8 sequences in clips of 150 frames, 320x640"),
                "monkaa": Dataset(sequences="8 scenes, at most 110 frames, 540x960; far limit per scene"),
                "sintel": Dataset(sequences="23 training sequences, clean pass, crop 436x872"),
                "ddad": Dataset(sequences="validation scenes, CAMERA_01, lidar depth, crop 1152x1920"),
            }
        ),
        source="MotionCrafter (2602), evaluation/eval.py in world mode; specification 5.2 and 5.3",
        pitfall=(
            "The true flow is x'(camera t+1) - x(camera t) and contains ego-motion, the prediction is world motion: "
            "with a moving camera a perfect prediction does not score 0. Geometry is scored on 8 frames when flow "
            "exists, on 25 otherwise. Errors are divided by the distance from the first camera: far points count less."
        ),
        failures="clips without flow enter the means as -1",
    ),
    Protocol(
        name="motioncrafter-world-corrected",
        parts=(_world, FlowPart(points=_world, target="world")),
        frames=Frames(count=25, count_with_flow=8),
        resize="bilinear_corners",
        source="the same with the true flow turned into world displacement, P[t+1](p+f) - P[t]p; specification 6.4",
        pitfall="Not comparable with the published table, which is the uncorrected protocol.",
    ),
    Protocol(
        name="geo4d-depth",
        parts=(_geo4d_depth,),
        resize="bicubic",
        averaging="valid_pixels",
        datasets=MappingProxyType(
            {
                "sintel": Dataset(sequences="all 23 training sequences, final pass, 20 to 50 frames"),
                "bonn": Dataset(sequences=_BONN),
                "kitti": Dataset(sequences=_KITTI, parts=(DepthPart(gauge=MONST3R_LAD),)),
            }
        ),
        source="Geo4D (ICCV 2025), scripts/evaluation; specification 4.1",
        pitfall=(
            "'scale & shift' is a long Adam run, close to exact L1, fitted only where the system trusts itself; on "
            "KITTI it is MonST3R's short run. The published fit mask is point validity > 0.8; here it is the more "
            "confident half. Bicubic resizing mixes depth across edges."
        ),
        failures="not said",
    ),
    Protocol(
        name="monst3r-depth",
        parts=(_monst3r_depth,),
        resize="bicubic",
        averaging="valid_pixels",
        datasets=MappingProxyType(
            {
                "sintel": Dataset(
                    sequences="14 pose sequences (or all 23 with --full_seq), final pass",
                    parts=(replace(_monst3r_depth, clip_after=(None, 70.0)),),
                ),
                "bonn": Dataset(sequences=_BONN),
                "kitti": Dataset(sequences=_KITTI, parts=(replace(_monst3r_depth, truth_range=(0.0, float("inf"))),)),
            }
        ),
        source="MonST3R (ICLR 2025), dust3r/depth_eval.py; peers specification 3.2",
        pitfall=(
            "'scale & shift' is 1000 steps of Adam at 1e-4: the shift can move by about 0.15, so it is nearly a median "
            "scale. Papers pick the best alignment per method (monst3r issue 33)."
        ),
    ),
    Protocol(
        name="cut3r-scale",
        parts=(_cut3r_scale,),
        resize="bicubic",
        averaging="valid_pixels",
        datasets=MappingProxyType(
            {
                "sintel": Dataset(sequences="14 sequences, final pass"),
                "bonn": Dataset(sequences=_BONN),
                "kitti": Dataset(sequences=_KITTI, parts=(replace(_cut3r_scale, truth_range=(0.0, float("inf"))),)),
            }
        ),
        source="CUT3R (CVPR 2025), eval/video_depth/eval_depth.py; peers specification 3.2",
        pitfall="One scale per sequence by ten reweighted steps; metric rows of the same table have none.",
    ),
    Protocol(
        name="depthcrafter-disparity",
        parts=(_depthcrafter,),
        resize="bilinear",
        datasets=MappingProxyType(
            {
                "sintel": Dataset(sequences="23 training sequences, about 50 frames"),
                "scannet": Dataset(
                    sequences="90 frames",
                    parts=(replace(_depthcrafter, truth_range=(1e-3, 10.0), clip_after=(1e-3, 10.0)),),
                ),
                "kitti": Dataset(
                    sequences="110 frames",
                    parts=(replace(_depthcrafter, truth_range=(1e-3, 80.0), clip_after=(1e-3, 80.0)),),
                ),
                "bonn": Dataset(
                    sequences="110 frames",
                    parts=(replace(_depthcrafter, truth_range=(1e-3, 10.0), clip_after=(1e-3, 10.0)),),
                ),
            }
        ),
        source="DepthCrafter (CVPR 2025), benchmark/eval/eval.py; peers specification 3.2",
        pitfall="Aligned in disparity, so near pixels rule the fit and far ones the error; the mean is over frames.",
    ),
    Protocol(
        name="geometrycrafter",
        parts=(PointPart(frame="camera", fit="scale3_l2", depth="own_scale"),),
        resize="bilinear_corners",
        source="GeometryCrafter (ICCV 2025), evaluation/eval.py, metrics.py; peers specification 3.2",
        pitfall=(
            "Points in each frame's own camera, one scale, no shift; depth gets a scale of its own. The script's "
            "use_weight means weights 1/z^2 here and 1/z in MotionCrafter's copy of it."
        ),
    ),
    Protocol(
        name="geo4d-pose",
        parts=(TrajectoryPart(),),
        datasets=_POSE_SETS,
        source="Geo4D (ICCV 2025), scripts/evaluation, with evo; specification 4.2",
        pitfall="Sim(3) over few frames flatters; means are over sequences of very different size.",
        failures="ATE and RPE are set to 0 when evo raises, then only non-zero entries are averaged: failures vanish",
    ),
    Protocol(
        name="monst3r-pose",
        parts=(TrajectoryPart(),),
        datasets=_POSE_SETS,
        source="MonST3R (ICLR 2025), dust3r/utils/vo_eval.py, with evo; peers specification 3.2",
        pitfall="The numbers of geo4d-pose; methods fail on different sequences and the tables do not say so.",
        failures="sequences on which evo raises are left out",
    ),
    Protocol(
        name="megasam-pose",
        parts=(TrajectoryPart(unit_displacement=True),),
        datasets=MappingProxyType({"sintel": Dataset(sequences=_SINTEL_POSE)}),
        source="MegaSaM (CVPR 2025), evaluations_poses/evaluate_sintel.py; peers specification 3.2",
        pitfall=(
            "True translations are divided by the distance from the first to the last camera first: not comparable "
            "with an ATE in metres, and harsh where the camera comes back."
        ),
    ),
    Protocol(
        name="vggt-auc",
        parts=(PoseAucPart(),),
        frames=Frames(count=10, random=True),
        source="VGGT (CVPR 2025) and VGGT-Omega, evaluation/test_co3d.py; PoseDiffusion's AUC",
        pitfall=(
            "Ten random frames per scene, so wide baselines; a reversed direction of translation counts as right, and "
            "a pair without true motion counts against everyone."
        ),
    ),
    Protocol(
        name="tapvid3d",
        parts=(TrackPart(),),
        datasets=MappingProxyType(
            {name: Dataset(sequences="minival or full split") for name in ("adt", "drivetrack", "pstudio")}
        ),
        source="TAPVid-3D (NeurIPS 2024), tapnet/tapvid3d/evaluation/metrics.py",
        pitfall=(
            "Median scaling by the distance of points visible in both; thresholds grow with true depth. A scene "
            "without tracks is scored by carrying the first frame's points along its scene flow."
        ),
    ),
    Protocol(
        name="vda-stability",
        parts=(StabilityPart(),),
        resize="bilinear",
        datasets=MappingProxyType({"scannet": Dataset(sequences="static scenes with true poses")}),
        source="Video Depth Anything (CVPR 2025), section 4 (TAE)",
        pitfall="Says nothing about accuracy: constant depth of a still camera is perfectly stable.",
    ),
)
