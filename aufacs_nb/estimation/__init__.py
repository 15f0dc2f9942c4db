"""Balanced training sets, classifiers, personalisation, and the estimator of photographs and films (§3.3, §3.4)."""
