"""Assay, from raw data to a ranked leaderboard. Each verb is a module here and a stage in dvc.yaml:

prepare    raw images                -> data/<dataset>/samples.parquet
extract    samples, frozen encoder   -> features/<dataset>/<encoder>/*.pt
manifest   samples                   -> data/<dataset>/manifest.json (train / val / test, leaks removed)
train      features, manifest        -> models/<dataset>/<model>/<category>/seed<k>/
evaluate   models, features          -> metrics/<dataset>/<model>.json and <model>/
ensemble   predictions               -> metrics/ensemble/<dataset>.json and <dataset>/ (several models as one row)
bench      models                    -> metrics/bench/<dataset>.json (latency, memory)
           prepare_series, manifest_series, train_series, evaluate_series and bench_series are the same for signals, whose detectors see them raw,
           and prepare_records, extract_records, manifest_records, train_records, evaluate_records and bench_records for records of several modalities
report     metrics                   -> metrics/report/index.html; track mirrors them to MLflow
"""
