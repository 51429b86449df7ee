"""SmolLM2 made to use a long context: the recipe of the adapter that is shipped with macbench.

`macbench train` runs train.py with the settings of conf/train/smollm2-long.yaml.
"""
