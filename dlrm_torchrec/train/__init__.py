# Imported before torch is: a launcher may die in the seconds that torch takes to load, and torch's threads read how to
# wait as it loads.
from dlrm_torchrec.train.processes import launcher as launcher
from dlrm_torchrec.train.processes import waiting as waiting
