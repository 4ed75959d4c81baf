# Prints medians over the turns, and ratios to wgpt's best row. Reads lines of name, variant, precision, batch,
# milliseconds, remark.

function quoted(s) { gsub(/[[:cntrl:]]/, "", s); gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
function is_number(s) { return s ~ /^[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?$/ }
function or_null(s) { return is_number(s) ? s : "null" }

$5 != "-" && !(is_number($5) && is_number($4)) { $6 = "not run: its output is not a number: " $4 " " $5; $4 = "-"; $5 = "-" }
{
    key = $1 "\t" $2 "\t" $3 "\t" $4
    # each different failure has one row of its own
    if ($5 == "-") key = key "\t" $6
    if (!(key in count)) { order[++rows] = key; count[key] = 0 }
    if ($5 != "-") times[key, ++count[key]] = $5
    remark[key] = $6
}

function median(key, i, k, n, t) {
    n = count[key]
    for (i = 1; i <= n; i++) sorted[i] = times[key, i] + 0
    for (i = 2; i <= n; i++) for (k = i; k > 1 && sorted[k - 1] > sorted[k]; k--) { t = sorted[k]; sorted[k] = sorted[k - 1]; sorted[k - 1] = t }
    spread = n ? (sorted[n] - sorted[1]) / 2 : 0
    return n % 2 ? sorted[(n + 1) / 2] : (sorted[n / 2] + sorted[n / 2 + 1]) / 2
}

END {
    # wgpt's rows first
    for (pass = 0; pass < 2; pass++)
        for (i = 1; i <= rows; i++) if ((order[i] ~ /^wgpt\t/) == (pass == 0)) list[++listed] = order[i]
    for (i = 1; i <= rows; i++) order[i] = list[i]
    for (i = 1; i <= rows; i++) {
        split(order[i], f, "\t")
        alone = f[2] == "blocks"
        if (!count[order[i]]) continue
        ms[i] = median(order[i])
        half[i] = ms[i] > 0 ? spread / ms[i] : 0
        if (ms[i] > 0) rate[i] = context * f[4] / ms[i] * 1000
        if (f[1] == "wgpt" && rate[i] > ours[alone]) { ours[alone] = rate[i]; means[alone] = f[3] ", batch " f[4] }
    }
    print ""
    printf "%-10s %-26s %-5s %6s %10s %6s %12s %12s  %s\n", "peer", "variant", "type", "batch", "ms", "+-%", "tokens/s", "ours/theirs", ""
    text = ""
    for (i = 1; i <= rows; i++) {
        split(order[i], f, "\t")
        alone = f[2] == "blocks"
        ratio = "-"; shown = "-"
        if (rate[i] > 0 && ours[alone] > 0) {
            ratio = ours[alone] / rate[i]
            shown = sprintf(busy == "" ? "%.3f" : "(%.3f)", ratio)
        }
        known = count[order[i]] > 0
        tokens = rate[i] > 0 ? sprintf("%.1f", rate[i]) : "-"
        line = sprintf("%-10s %-26s %-5s %6s %10s %6s %12s %12s  %s", f[1], f[2], f[3], f[4], known ? sprintf("%.1f", ms[i]) : "-", \
            count[order[i]] > 1 ? sprintf("%.1f", 100 * half[i]) : "-", tokens, shown, remark[order[i]])
        print line
        text = text sprintf("%s\n{\"name\": %s, \"variant\": %s, \"type\": %s, \"batch\": %s, \"ms\": %s, \"spread\": %s, \"turns\": %d, \"tokens_per_s\": %s, \"ours_over_theirs\": %s, \"remark\": %s}", \
            i > 1 ? "," : "", quoted(f[1]), quoted(f[2]), quoted(f[3]), or_null(f[4]), known ? ms[i] : "null", known ? half[i] : "null", \
            count[order[i]], rate[i] > 0 ? rate[i] : "null", busy == "" && ratio != "-" ? ratio : "null", quoted(remark[order[i]]))
    }
    if (means[0] != "") print "ours is wgpt at " means[0] "; " (turns > 1 ? "medians of at most " turns " turns" : "one turn, no spread") ", programs one after another"
    if (others != "") printf "others used %.2f of %d cores; the load was %s before the start\n", others, cores, load
    if (busy != "") print "not a result: the machine was busy (" busy ")"
    if (json != "") {
        printf("{\"batch\": %s, \"context\": %s, \"turns\": %d, \"busy\": %s, \"why\": %s, \"others_cores\": %s, \"cores\": %d, \"load\": %s, \"peers\": [%s\n]}\n", \
            batch, context, turns, busy == "" ? "false" : "true", quoted(busy), or_null(others), cores, quoted(load), text) >json
    }
}
