"""macbench: does a KV-cache method keep full-attention quality at a fraction of the KV reads?"""

__version__ = "0.1.0"
