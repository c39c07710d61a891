"""What can be proved of a network in a ball around every image?"""

from rqlib.certification.bounds import certified, crown, crown_ibp, ibp, symbolic
from rqlib.certification.cascade import cascade as certify
from rqlib.certification.cascade import ladder, ladder_if_known
from rqlib.certification.smoothing import smooth

__all__ = ["certified", "certify", "crown", "crown_ibp", "ibp", "ladder", "ladder_if_known", "smooth", "symbolic"]
