"""Dense optical flow between two pictures: OpenCV's DIS, and a small recurrent correlation network that improves it."""
