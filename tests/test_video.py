"""Reading and writing video: what goes in comes out, upright, on time, and damage is told."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worldline.io.video import ReadReport, VideoReader, from_array, load_video, parse_frames, write_video
from worldline.scene import Video

COUNT = 30


def ramp(count: int = COUNT, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    """Frames whose brightness tells their index and whose left edge is red, top edge green."""
    frames = torch.zeros(count, *size, 3, dtype=torch.uint8)
    frames += (60 + 4 * torch.arange(count))[:, None, None, None].to(torch.uint8)
    frames[:, :, : size[1] // 4] = torch.tensor([220, 20, 20], dtype=torch.uint8)
    frames[:, : size[0] // 4] = torch.tensor([20, 220, 20], dtype=torch.uint8)
    return frames


def index_of(frame: torch.Tensor) -> int:
    """The index painted into a frame of `ramp`, read at its lower right corner."""
    return round((float(frame[-8:, -8:].float().mean()) - 60) / 4)


def video(times: torch.Tensor | None = None, **kwargs: object) -> Video:
    frames = ramp(**kwargs)  # type: ignore[arg-type]
    return Video(frames=frames, timestamps=torch.arange(len(frames)).double() / 25 if times is None else times)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, video())
    return path


def encode(path: Path, frames: np.ndarray, form: str, codec: str, pix_fmt: str, **options: str) -> Path:
    """Write frames [T, H, W, C] already in `form` with any codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=form)))
        container.mux(stream.encode(None))
    return path


def rotate_display(path: Path, turns_clockwise: int, target: Path) -> Path:
    """Write the display matrix a phone writes: show the frames turned clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns_clockwise % 4]
    fixed = [cos << 16, sin << 16, 0, -(sin << 16), cos << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *fixed)
    target.write_bytes(data)
    return target


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_written_video_reads_back(tmp_path: Path, suffix: str) -> None:
    original = video()
    write_video(tmp_path / f"a{suffix}", original)
    again = load_video(tmp_path / f"a{suffix}", on_warning=pytest.fail)
    assert [index_of(frame) for frame in again.frames] == list(range(COUNT))
    assert (again.frames.float() - original.frames.float()).abs().mean() < 3
    assert torch.allclose(again.timestamps, original.timestamps, atol=1.1e-3)  # matroska keeps milliseconds


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = torch.tensor([0.0, 0.04, 0.5, 0.51, 1.7, 3.0], dtype=torch.float64)
    write_video(tmp_path / "vfr.mp4", video(times, count=6))
    assert torch.allclose(load_video(tmp_path / "vfr.mp4").timestamps, times, atol=2e-5)


def test_given_rate_replaces_the_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", video(), fps=10.0)
    assert load_video(tmp_path / "a.mp4").fps == pytest.approx(10, rel=1e-3)


def test_odd_sizes_are_padded_and_float_frames_written(tmp_path: Path) -> None:
    odd = Video(frames=video(count=3, size=(31, 45)).rgb(), timestamps=torch.arange(3).double())
    write_video(tmp_path / "odd.mp4", odd)
    again = load_video(tmp_path / "odd.mp4")
    assert again.size == (32, 46)
    assert (again.rgb()[:, :31, :45] - odd.frames).abs().mean() < 0.03


def test_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", video(count=1))
    again = load_video(tmp_path / "one.mp4")
    assert len(again) == 1 and again.fps == 0 and again.timestamps.tolist() == [0]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_metadata_is_honoured(clip: Path, tmp_path: Path, turns: int) -> None:
    turned = rotate_display(clip, turns, tmp_path / "turned.mp4")
    expected = torch.rot90(load_video(clip).frames, -turns, dims=(1, 2))
    reader = VideoReader(turned)
    assert reader.size == tuple(expected.shape[1:3])
    assert (load_video(turned).frames.float() - expected.float()).abs().max() <= 1


def test_non_square_pixels_are_made_square(tmp_path: Path) -> None:
    frames = ramp(4).numpy()
    path = tmp_path / "anamorphic.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert load_video(path).size == (48, 128)


# ------------------------------------------------------------------------------------------------ formats and colours


def test_alpha_is_composited_on_black(tmp_path: Path) -> None:
    rgba = np.full((3, 16, 16, 4), 200, np.uint8)
    rgba[:, :8, :, 3] = 0
    rgba[:, 8:, :, 3] = 255
    rgba[:, 8:, 8:, 3] = 128
    Image.fromarray(rgba[0]).save(tmp_path / "a.png")
    sources = {
        "png": tmp_path / "a.png",
        "ffv1": encode(tmp_path / "a.mkv", rgba, "rgba", "ffv1", "bgra"),
        "array": rgba,
        "float": (rgba / 255).astype(np.float32),
    }
    for name, source in sources.items():
        frame = load_video(source).rgb()[0] * 255
        assert frame[:8].max() == 0, name
        assert frame[8:, :8].min() == pytest.approx(200, abs=1e-2), name
        assert frame[8:, 8:].mean() == pytest.approx(100.4, abs=1), name


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    Image.fromarray(grey[0]).save(tmp_path / "g.png")
    Image.fromarray(grey[0].astype(np.uint16) * 257).save(tmp_path / "g16.png")
    video_file = encode(tmp_path / "g.mkv", grey.repeat(3, 0), "gray", "ffv1", "gray")
    for source in (tmp_path / "g.png", tmp_path / "g16.png", grey, grey[..., None], grey.astype(np.uint16) * 257):
        assert np.array_equal(load_video(source).frames[0].numpy(), grey[0][..., None].repeat(3, -1))
    assert np.abs(load_video(video_file).frames[0].int().numpy() - grey[0][..., None]).max() <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_their_frame_times(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(frame) for frame in ramp(5).numpy()]
    durations = [100, 300, 50, 100, 100]
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)
    read = load_video(path)
    assert [index_of(frame) for frame in read.frames] == list(range(5))
    assert torch.allclose(read.timestamps, torch.tensor([0, 0.1, 0.4, 0.45, 0.55], dtype=torch.float64))
    assert index_of(load_video(path, frames=slice(3, 4)).frames[0]) == 3


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for index, frame in enumerate(ramp(12).numpy()):
        Image.fromarray(frame).save(tmp_path / f"frame_{index}.png")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not a picture")
    read = load_video(tmp_path, fps=5.0)
    assert [index_of(frame) for frame in read.frames] == list(range(12))
    assert read.fps == pytest.approx(5)


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(ramp(1)[0].numpy()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_video(tmp_path / "a.png").frames[0], torch.rot90(ramp(1)[0], -1))


@given(
    channels=st.sampled_from([None, 1, 3, 4]),
    dtype=st.sampled_from(["uint8", "uint16", "float32", "float64", "bool"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
)
@settings(deadline=None, max_examples=30)
def test_arrays_of_every_kind(channels: int | None, dtype: str, shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).random(shape if channels is None else (*shape, channels))
    top = {"uint8": 255, "uint16": 65535, "bool": 1}.get(dtype, 1)
    array = (values * top).round().astype(dtype) if dtype != "bool" else values > 0.5
    read = from_array(array)
    assert tuple(read.frames.shape) == (*shape, 3)
    whole = array.astype(float) / top
    whole = whole[..., None] if channels is None else whole
    expected = whole[..., :3] * (whole[..., 3:] if channels == 4 else 1)
    assert np.abs(read.rgb().numpy() - expected).max() <= 0.006


def test_tensor_and_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(5).numpy())
    assert torch.equal(load_video(tmp_path / "a.npy").frames, ramp(5))
    assert torch.equal(load_video(ramp(5)).frames, ramp(5))


# -------------------------------------------------------------------------------------------------- ranges and sizes


@pytest.mark.parametrize("text", ["0:10:1", "3:20:4", "::7", "25:", ":3", "29", "5:6"])
def test_ranges_choose_the_frames_python_would(clip: Path, text: str) -> None:
    chosen = parse_frames(text)
    read = load_video(clip, frames=chosen)
    assert [index_of(frame) for frame in read.frames] == list(range(COUNT))[chosen]
    assert torch.allclose(read.timestamps, torch.arange(COUNT).double()[chosen] / 25, atol=1e-4)


@pytest.mark.parametrize("times", ["even", "uneven"])
def test_far_start_is_found_by_seeking(tmp_path: Path, times: str) -> None:
    count = 260
    stamps = torch.arange(count).double() / 25
    if times == "uneven":
        stamps = torch.cumsum(torch.rand(count, dtype=torch.float64) * 0.1 + 0.01, 0)
        stamps = stamps - stamps[0]
    frames = torch.zeros(count, 32, 32, 3, dtype=torch.uint8)
    for index in range(count):  # the index in binary, in blocks of 8x16
        for bit in range(8):
            frames[index, 8 * (bit // 2) :, 16 * (bit % 2) :][:8, :16] = 255 * (index % 256 >> bit & 1)
    write_video(tmp_path / "long.mp4", Video(frames=frames, timestamps=stamps))
    read = load_video(tmp_path / "long.mp4", frames=slice(201, 250, 7), on_warning=pytest.fail)
    blocks = read.frames.float().mean(-1).reshape(-1, 4, 8, 2, 16).mean((2, 4)).flatten(1) > 128
    assert (blocks * 2 ** torch.arange(8)).sum(1).tolist() == list(range(201, 250, 7))
    assert torch.allclose(read.timestamps, stamps[201:250:7], atol=1e-4)


def test_size_averages_areas_and_max_area_keeps_the_shape(clip: Path) -> None:
    full, small = load_video(clip, frames=slice(0, 2)), load_video(clip, frames=slice(0, 2), size=(12, 16))
    expected = full.frames.float().reshape(2, 12, 4, 16, 4, 3).mean((2, 4))
    assert (small.frames.float() - expected).abs().max() <= 0.51
    limited = load_video(clip, frames=slice(0, 1), max_area=800)
    assert limited.size[0] * limited.size[1] <= 800
    assert limited.size[1] / limited.size[0] == pytest.approx(64 / 48, rel=0.05)
    assert load_video(clip, max_area=10**6).size == (48, 64)
    assert load_video(clip, frames=slice(0, 1), size=(96, 130)).size == (96, 130)


def test_reader_is_lazy(tmp_path: Path) -> None:
    """Frames come one at a time: the walk can stop long before a bad one."""
    array = np.zeros((5, 4, 4, 3), np.float32)
    array[4] = np.nan
    walk = iter(VideoReader(array))
    assert [next(walk)[0] for _ in range(4)] == pytest.approx([0, 1 / 24, 2 / 24, 3 / 24])
    with pytest.raises(ValueError, match="NaN or infinite values in frame 4"):
        next(walk)


def test_memory_is_that_of_the_result(tmp_path: Path) -> None:
    import tracemalloc

    write_video(tmp_path / "large.mp4", Video(frames=torch.zeros(12, 720, 1280, 3, dtype=torch.uint8),
                                              timestamps=torch.arange(12).double()))  # fmt: skip
    tracemalloc.start()
    load_video(tmp_path / "large.mp4", size=(36, 64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 720 * 1280 * 3  # of 12 frames


# ------------------------------------------------------------------------------------------------------------ damage


def test_truncated_file_is_read_as_far_as_it_goes_and_reported(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", video(size=(240, 320)))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    told: list[str] = []
    read = load_video(tmp_path / "cut.mkv", on_warning=told.append)
    assert 1 <= len(read) < COUNT
    assert told == [
        f"{tmp_path / 'cut.mkv'}: {COUNT - len(read)} of {COUNT} frames are missing (cut short or damaged)."
    ]


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mov", ramp(20).numpy(), "rgb24", "png", "rgb24")
    data = bytearray(path.read_bytes())
    for start in [i for i in range(len(data)) if data[i : i + 8] == b"\x89PNG\r\n\x1a\n"][5:8]:
        data[start : start + 40] = b"\0" * 40
    path.write_bytes(data)
    reader = VideoReader(path)
    assert len(list(reader)) == 17
    assert reader.report.skipped == 3 and reader.report.missing == 3
    with pytest.warns(UserWarning, match="3 damaged packets were skipped and 3 of 20 frames are missing"):
        load_video(path)


def test_damaged_picture_in_a_folder_is_skipped_and_counted(tmp_path: Path) -> None:
    for index, frame in enumerate(ramp(5).numpy()):
        Image.fromarray(frame).save(tmp_path / f"{index}.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:200])
    told: list[str] = []
    read = load_video(tmp_path, fps=1.0, on_warning=told.append)
    assert read.timestamps.tolist() == [0, 1, 3, 4]
    assert len(told) == 1 and "1 damaged picture was skipped" in told[0]


def test_range_past_the_end_is_cut_and_told(clip: Path) -> None:
    told: list[str] = []
    assert len(load_video(clip, frames=slice(20, 50), on_warning=told.append)) == 10
    assert len(told) == 1 and "ends at 50, but there are only 30 frames" in told[0]


def test_good_report_says_nothing() -> None:
    assert ReadReport(source="a", frames=3, expected=3).message == ""


# --------------------------------------------------------------------------------------------------------- bad input


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return text.endswith(".") and "\n" not in text and len(text) > 15


@pytest.mark.parametrize("text", ["", "a:b", "1:2:3:4", "5:5", "9:3", "-3:", ":-1", "0:10:0", "0:10:-1", "1.5", ":::"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_frames(text)
    assert one_sentence(caught.value)


@pytest.mark.parametrize("frames", [slice(30, 40), slice(1000, None), slice(500, 510)])
def test_range_outside_the_video(clip: Path, frames: slice) -> None:
    with pytest.raises(ValueError, match=r"lies outside .* which has 30 frames \(0 to 29\)\."):
        load_video(clip, frames=frames)


def test_files_that_are_no_video(tmp_path: Path, clip: Path) -> None:
    contents = {
        "empty.mp4": b"",
        "text.txt": b"hello, this is text\n" * 100,
        "text.mp4": b"hello, this is text\n" * 100,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "cut.mp4": clip.read_bytes()[:300],
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "bad.npy": b"\x93NUMPY nonsense",
        "cut.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as caught:
            load_video(tmp_path / name)
        assert one_sentence(caught.value) and name in str(caught.value), (name, str(caught.value))


def test_missing_and_empty_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_video(tmp_path / "none.mp4")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_video("http://127.0.0.1:9/video.mp4")  # never reaches the network
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        load_video(tmp_path / "folder")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        load_video("/dev/null")


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video stream"):
        load_video(path)


def test_mixed_sizes_in_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match="differ in size: 2.png is 9x6, the first is 8x6"):
        load_video(tmp_path)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((2, 4, 4, 3), np.nan), "NaN or infinite"),
        (np.full((2, 4, 4, 3), np.inf, np.float32), "NaN or infinite"),
        (np.full((2, 4, 4, 3), 200.0), r"scale it to \[0, 1\]"),
        (np.zeros((2, 4, 4, 2)), "must have shape"),
        (np.zeros((4, 4)), "must have shape"),
        (np.zeros((0, 4, 4, 3)), "is empty"),
        (np.zeros((2, 4, 0, 3)), "is empty"),
        (np.zeros((2, 4, 4, 3), np.int64), "must be uint8"),
        (np.zeros((2, 4, 4, 3), complex), "must be uint8"),
    ],
)
def test_bad_arrays(array: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        from_array(array)
    assert one_sentence(caught.value)


def test_bad_sizes_and_rates(clip: Path) -> None:
    for options in ({"size": (0, 4)}, {"size": (4, 4), "max_area": 4}, {"max_area": 0}, {"fps": 0.0}):
        with pytest.raises(ValueError):
            load_video(clip, **options)  # type: ignore[arg-type]


def test_too_large_for_memory_is_said_before_reading() -> None:
    endless = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (10**6, 4320, 7680, 3))
    with pytest.raises(ValueError, match="choose fewer frames or a smaller size"):
        load_video(endless)


# ----------------------------------------------------------------------------------------------------------- writing


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", video(count=2))
    before = (tmp_path / "a.mp4").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldline.io.video.np.pad", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_video(tmp_path / "a.mp4", video())
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == before


def test_bad_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        write_video(tmp_path / "a.avi", video())
    with pytest.raises(ValueError, match="do not increase"):
        write_video(tmp_path / "a.mp4", video(torch.zeros(COUNT, dtype=torch.float64)))
    with pytest.raises(ValueError, match="fps must be positive"):
        write_video(tmp_path / "a.mp4", video(), fps=0.0)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- real data


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "size", "fps"),
    [("lady-running.mp4", 65, (480, 854), 30), ("house.mp4", 8, (384, 672), 1), ("cat.mp4", 87, (480, 368), 20),
     ("davis_rollercoaster.mp4", 70, (540, 960), 24), ("photos_001", 13, (1080, 1920), 24)],
)  # fmt: skip
def test_real_videos(shared_data: Path, name: str, count: int, size: tuple[int, int], fps: float) -> None:
    path = shared_data / "videos" / name
    reader = VideoReader(path)
    assert (reader.num_frames, reader.size) == (count, size)
    read = load_video(path, size=(24, 32), on_warning=pytest.fail)
    assert len(read) == count and read.fps == pytest.approx(fps, rel=1e-3)
    assert read.rgb().std() > 0.05
