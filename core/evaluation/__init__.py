"""How good a detector is: COCO numbers, equal to those of pycocotools."""
