"""Services of a running process: writers, report, throughput, watchdog, peers, disk cache."""
