# Imported before torch is: a launcher may die in the seconds that torch takes to load.
from dlrm_torchrec.train.processes import launcher as launcher
