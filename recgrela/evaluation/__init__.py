"""Full ranking and its metrics, significance over users, and recommendations."""
