"""Draw a sheet of test images: annotations above, detections below."""

from __future__ import annotations

import argparse

import cv2
import mmcv
import numpy as np
from mmcv.ops import nms
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData

import apa_mmdet  # noqa: F401  registers the types that the config uses

_GAP = 6  # pixels between images


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config file")
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", default="detections.png", help="image to write")
    parser.add_argument("--images", type=int, default=6, help="number of images")
    parser.add_argument("--columns", type=int, default=3, help="images in a row")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="lowest score that is drawn"
    )
    parser.add_argument(
        "--width", type=int, default=400, help="width of each image in pixels"
    )
    parser.add_argument("--device", default="cpu", help="where to run the model")
    return parser.parse_args()


def load_annotations(dataset, index: int) -> InstanceData:
    """Return the annotations of an image, with polygons rasterized."""
    info = dataset.get_data_info(index)
    instances = info["instances"]
    masks = np.zeros((len(instances), info["height"], info["width"]), dtype=np.uint8)
    for mask, instance in zip(masks, instances):
        for polygon in instance["mask"]:
            points = np.asarray(polygon).reshape(-1, 2).round().astype(np.int32)
            cv2.fillPoly(mask, [points], 1)
    boxes = np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4)
    labels = np.array([i["bbox_label"] for i in instances], dtype=np.int64)
    truth = InstanceData(bboxes=boxes, labels=labels, masks=masks.astype(bool))
    return truth.to_tensor()


def select_detections(predictions: InstanceData, score_thr: float) -> InstanceData:
    """Return detections above a score, after NMS across classes."""
    predictions = predictions[predictions.scores > score_thr]
    _, keep = nms(predictions.bboxes, predictions.scores, iou_threshold=0.5)
    return predictions[keep]


def resize(instances: InstanceData, scale: float, width: int, height: int):
    """Resize instances with their image, so that labels stay readable."""
    masks = instances.masks.cpu().numpy().astype(np.uint8)
    resized = [
        cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST) for m in masks
    ]
    instances.masks = np.array(resized, dtype=bool).reshape(-1, height, width)
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
        height, width = image.shape[:2]
        truth = load_annotations(dataset, index)
        predictions = inference_detector(model, path).pred_instances
        dets = select_detections(predictions, args.score_thr)
        halves = []
        for kind, instances in (("gt", truth), ("pred", dets)):
            sample = DetDataSample()
            setattr(
                sample, f"{kind}_instances", resize(instances, scale, width, height)
            )
            visualizer.add_datasample(
                "sheet",
                image,
                sample,
                draw_gt=kind == "gt",
                draw_pred=kind == "pred",
                pred_score_thr=args.score_thr,
            )
            halves.append(visualizer.get_image())
        gap = np.full((_GAP, width, 3), 255, np.uint8)
        tiles.append(np.vstack([halves[0], gap, halves[1]]))
    mmcv.imwrite(mmcv.rgb2bgr(make_sheet(tiles, args.columns)), args.out)
    print(f"{len(tiles)} images, annotations above, detections below: {args.out}")


if __name__ == "__main__":
    main()
