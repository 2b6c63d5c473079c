"""From images to detections, and from detections to files that other programs read."""

from core.prediction.detect import ImagePrediction, detect, predict_images
from core.prediction.folder import PredictionFolder
from core.prediction.inputs import collect_images
from core.prediction.outputs import label_paths, write_predictions_csv, write_predictions_json, write_yolo_labels

__all__ = [
    "ImagePrediction",
    "PredictionFolder",
    "collect_images",
    "detect",
    "label_paths",
    "predict_images",
    "write_predictions_csv",
    "write_predictions_json",
    "write_yolo_labels",
]
