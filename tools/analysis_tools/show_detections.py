"""Draw a sheet of test images: what is annotated above, what was detected below."""

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

import apa_mmdet  # noqa: F401  registers the model's parts

_GAP = 6  # pixels between images


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config file")
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", default="detections.png", help="picture to write")
    parser.add_argument("--images", type=int, default=6, help="number of images")
    parser.add_argument("--columns", type=int, default=3, help="images in a row")
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="lowest score that is drawn"
    )
    parser.add_argument(
        "--width", type=int, default=400, help="pixels that an image is drawn wide"
    )
    parser.add_argument("--device", default="cpu", help="where to run the model")
    return parser.parse_args()


def annotated(dataset, index: int) -> DetDataSample:
    """Return the annotations of an image, masks drawn to its size."""
    info = dataset.get_data_info(index)
    instances = info["instances"]
    masks = np.zeros((len(instances), info["height"], info["width"]), dtype=np.uint8)
    for mask, instance in zip(masks, instances):
        for polygon in instance["mask"]:
            points = np.asarray(polygon).reshape(-1, 2).round().astype(np.int32)
            cv2.fillPoly(mask, [points], 1)
    boxes = np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4)
    truth = InstanceData(
        bboxes=boxes,
        labels=np.array([i["bbox_label"] for i in instances], dtype=np.int64),
        masks=masks.astype(bool),
    )
    return DetDataSample(gt_instances=truth.to_tensor())


def one_class_each(found: InstanceData, score_thr: float) -> InstanceData:
    """Return the detections without those that another one, of any class, covers."""
    found = found[found.scores > score_thr]
    _, keep = nms(found.bboxes, found.scores, iou_threshold=0.5)
    return found[keep]


def enlarged(sample: InstanceData, scale: float, width: int, height: int):
    """Return instances scaled with their picture, so that labels stay readable."""
    masks = sample.masks.cpu().numpy().astype(np.uint8)
    resized = [
        cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST) for m in masks
    ]
    sample.masks = np.array(resized, dtype=bool).reshape(-1, height, width)
    sample.bboxes = sample.bboxes * scale
    return sample


def main() -> None:
    """Draw the sheet."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    model = init_detector(cfg, args.checkpoint, device=args.device)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    visualizer = DetLocalVisualizer(alpha=0.4, line_width=2)
    visualizer.dataset_meta = dataset.metainfo
    picks = np.linspace(0, len(dataset) - 1, args.images).astype(int)
    tiles = []
    for index in picks:
        path = dataset.get_data_info(int(index))["img_path"]
        image = mmcv.imread(path, channel_order="rgb")
        scale = args.width / image.shape[1]
        shown = mmcv.imrescale(image, scale)
        height, width = shown.shape[:2]
        truth = annotated(dataset, int(index))
        truth.gt_instances = enlarged(truth.gt_instances, scale, width, height)
        found = inference_detector(model, path)
        best = one_class_each(found.pred_instances, args.score_thr)
        found.pred_instances = enlarged(best, scale, width, height)
        pair = []
        for sample in (truth, found):
            visualizer.add_datasample(
                "sheet",
                shown,
                sample,
                draw_gt=sample is truth,
                draw_pred=sample is found,
                pred_score_thr=args.score_thr,
            )
            pair.append(visualizer.get_image())
        gap = np.full((_GAP, width, 3), 255, np.uint8)
        tiles.append(np.vstack([pair[0], gap, pair[1]]))
    mmcv.imwrite(mmcv.rgb2bgr(sheet(tiles, args.columns)), args.out)
    print(f"{len(tiles)} images, annotated above and detected below: {args.out}")


def sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Lay pictures out in rows, on white."""
    height = max(tile.shape[0] for tile in tiles) + 2 * _GAP
    width = max(tile.shape[1] for tile in tiles) + _GAP
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * height, (number % columns) * width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas


if __name__ == "__main__":
    main()
