-- What wrk has measured, as one line of JSON.
function done(summary, latency)
    local failed = summary.errors
    io.write(string.format(
        '{"requests": %d, "microseconds": %d, "p50": %.3f, "p99": %.3f, "errors": %d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        failed.connect + failed.read + failed.write + failed.status + failed.timeout
    ))
end
