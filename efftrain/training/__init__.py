"""The training loop and its typed configuration. It sees a Recorder; it knows no sensor and no meter."""
