"""Pictures: boxes on images."""
