"""What can be proved of a network in a ball around every image?"""

from rqlib.certification.bounds import certified, crown, crown_ibp, ibp, symbolic

__all__ = ["certified", "crown", "crown_ibp", "ibp", "symbolic"]
