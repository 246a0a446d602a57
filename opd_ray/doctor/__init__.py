"""``opd-ray doctor``: everything that can be known of a run before it starts.

No weights are read and nothing is downloaded: of a model that is elsewhere, the size is unknown.
"""

from opd_ray.doctor.examine import examine
from opd_ray.doctor.finding import Finding, Report, Verdict

__all__ = ["Finding", "Report", "Verdict", "examine"]
