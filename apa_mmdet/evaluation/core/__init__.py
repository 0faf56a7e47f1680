"""Arrays and rules: ground truth, detections, matching, accumulation, bootstrap."""
