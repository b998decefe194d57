from __future__ import annotations

import hypothesis

# A shared, noisy machine: how long an example takes says nothing.
hypothesis.settings.register_profile("outlast", deadline=None, print_blob=True)
hypothesis.settings.load_profile("outlast")
