"""What the paper is compared with, each only what differs, on the one fitting loop and with the pipeline's protocol."""
