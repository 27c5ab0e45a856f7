from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from remuda.metrics.histogram import Histogram, one_two_five
from remuda.metrics.prometheus import Exporter
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.request import EngineRequest, EngineStats, FinishReason
from remuda.protocol.sampling import SamplingParams


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5))))
def test_buckets_count_what_is_at_most_their_bound(values: list[tuple[float, int]]) -> None:
    histogram = Histogram((1.0, 10.0, 50.0))
    for value, times in values:
        histogram.observe(value, times)
    for bound, count in histogram.cumulative():
        assert count == sum(times for value, times in values if value <= float(bound))
    assert histogram.count == sum(times for _, times in values)
    assert histogram.total == pytest.approx(sum(value * times for value, times in values))


def test_length_buckets() -> None:
    assert one_two_five(300) == [1, 2, 5, 10, 20, 50, 100, 200]


def test_the_life_of_a_sequence() -> None:
    metrics = ServingMetrics(100)
    times = metrics.arrived(EngineRequest("r", [1, 2, 3], SamplingParams(max_tokens=9), 10.0))
    metrics.produced(times, 1, 10.5)
    metrics.produced(times, 2, 10.9)  # two at once: 0.2 s each
    metrics.ended(times, FinishReason.STOP, 11.0)
    assert metrics.time_to_first_token.total == pytest.approx(0.5)
    assert (metrics.inter_token_latency.count, metrics.inter_token_latency.total) == (2, pytest.approx(0.4))
    assert metrics.time_per_output_token.total == pytest.approx(0.2)
    assert metrics.e2e_latency.total == pytest.approx(1.0)
    assert (metrics.generation_tokens.total, metrics.prompt_tokens.total) == (3, 3)
    assert metrics.finished[FinishReason.STOP] == 1


def test_prometheus_can_read_it() -> None:
    metrics = ServingMetrics(100)
    metrics.engine = EngineStats(
        running=3, waiting=2, kv_pages_total=10, kv_pages_used=4, preemptions=5, generated_tokens=6
    )
    metrics.time_to_first_token.observe(0.03)
    families = list(text_string_to_metric_families(Exporter(metrics, 'odd "name"\n').render().decode()))
    samples = {
        (sample.name, sample.labels.get("le")): (sample.value, sample.labels) for f in families for sample in f.samples
    }
    expected = {
        "vllm:num_requests_running": 3, "vllm:num_requests_waiting": 2, "vllm:kv_cache_usage_perc": 0.4,
        "vllm:num_preemptions_total": 5, "vllm:generation_tokens_total": 6,
    }  # fmt: skip
    for name, value in expected.items():
        assert samples[name, None][0] == value, name
        assert samples[name, None][1]["model_name"] == 'odd "name"\n'
    assert samples["vllm:time_to_first_token_seconds_bucket", "0.02"][0] == 0
    assert samples["vllm:time_to_first_token_seconds_bucket", "0.04"][0] == 1
    assert samples["vllm:time_to_first_token_seconds_bucket", "+Inf"][0] == 1
