"""Draw a sheet of test images: annotations above, detections below."""

from __future__ import annotations

import argparse

import mmcv
import numpy as np
from mmcv.ops import nms
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData

import apa_mmdet  # noqa: F401  registers the types that the config uses
from apa_mmdet.evaluation.core.masks import decode

_GAP = 6  # pixels between images


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="path of the config file")
    add("checkpoint", help="path of the checkpoint")
    add("--out", default="detections.png", help="image to write")
    add("--images", type=int, default=6, help="number of images")
    add("--columns", type=int, default=3, help="images in a row")
    add("--score-thr", type=float, default=0.3, help="lowest score that is drawn")
    add("--width", type=int, default=400, help="width of each image in pixels")
    add("--device", default="cpu", help="where to run the model")
    return parser.parse_args()


def load_annotations(dataset, index: int) -> InstanceData:
    """Return the annotations of an image, with masks if all of them have one."""
    info = dataset.get_data_info(index)
    instances, size = info["instances"], (info["height"], info["width"])
    boxes = np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4)
    labels = np.array([i["bbox_label"] for i in instances], dtype=np.int64)
    annotations = InstanceData(bboxes=boxes, labels=labels)
    if all("mask" in i for i in instances):
        bitmaps = []
        for number, instance in enumerate(instances, start=1):
            try:
                bitmaps.append(decode(instance["mask"], *size))
            except ValueError as error:
                place = f"{info['img_path']}: instance {number}"
                raise ValueError(f"{place}: {error}") from None
        annotations.masks = BitmapMasks(bitmaps, *size)
    return annotations.to_tensor()


def select_detections(predictions: InstanceData, score_thr: float) -> InstanceData:
    """Return detections above a score, after NMS across classes."""
    predictions = predictions[predictions.scores > score_thr]
    _, keep = nms(predictions.bboxes, predictions.scores, iou_threshold=0.5)
    dets = predictions[keep].numpy()
    if "masks" in dets:
        bitmaps = dets.pop("masks").astype(np.uint8)
        dets.masks = BitmapMasks(bitmaps, *bitmaps.shape[1:])
    return dets.to_tensor()


def resize(instances: InstanceData, scale: float, shape: tuple) -> InstanceData:
    """Resize instances with their image, so that labels stay readable."""
    if "masks" in instances:
        instances.masks = instances.masks.resize(shape)
    instances.bboxes = instances.bboxes * scale
    return instances


def make_sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Return one image with the tiles in rows, on white."""
    height = max(tile.shape[0] for tile in tiles) + 2 * _GAP
    width = max(tile.shape[1] for tile in tiles) + _GAP
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * height, (number % columns) * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def main() -> None:
    """Draw the sheet."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    model = init_detector(cfg, args.checkpoint, device=args.device)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    visualizer = DetLocalVisualizer(alpha=0.4, line_width=2)
    visualizer.dataset_meta = dataset.metainfo
    tiles = []
    for index in np.linspace(0, len(dataset) - 1, args.images).astype(int).tolist():
        path = dataset.get_data_info(index)["img_path"]
        image = mmcv.imread(path, channel_order="rgb")
        scale = args.width / image.shape[1]
        image = mmcv.imrescale(image, scale)
        truth = load_annotations(dataset, index)
        predictions = inference_detector(model, path).pred_instances
        dets = select_detections(predictions, args.score_thr)
        sample = DetDataSample(
            gt_instances=resize(truth, scale, image.shape[:2]),
            pred_instances=resize(dets, scale, image.shape[:2]),
        )
        options = dict(data_sample=sample, pred_score_thr=args.score_thr)
        visualizer.add_datasample("sheet", image, draw_pred=False, **options)
        above = visualizer.get_image()
        visualizer.add_datasample("sheet", image, draw_gt=False, **options)
        gap = np.full((_GAP, *image.shape[1:]), 255, np.uint8)
        tiles.append(np.vstack([above, gap, visualizer.get_image()]))
    mmcv.imwrite(mmcv.rgb2bgr(make_sheet(tiles, args.columns)), args.out)
    print(f"{len(tiles)} images, annotations above, detections below: {args.out}")


if __name__ == "__main__":
    main()
