"""What users call: patch and its report, capture, warmup, and which backends there are. ``patch``
finds blocks (``adapters``) and lets their modules run on our ops (``wrappers``, ``running``)."""
