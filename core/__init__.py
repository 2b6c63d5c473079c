"""dedetr: data-efficient detection transformers. `core.api` is the door; see CONTRIBUTING for the floors."""
