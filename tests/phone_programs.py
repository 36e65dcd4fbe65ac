"""Benchmark programs for a fake phone: scripts that print what the real ones do."""

from __future__ import annotations

# A file takes the longer, the larger it is.
_SIZE = 'size=$(( $(wc -c <"$file") * 100 ))'
_MILLISECONDS = "$((size / 1000)) $((size % 1000))"

FAKE_ORT = f"""while [ $# -gt 2 ]; do [ "$1" = -r ] && runs=$2; shift; done
file=$1 rows=$2; {_SIZE}; done=0; seconds=$(printf '%d.%06d' $((size / 1000000)) $((size % 1000000)))
while [ $done -lt $runs ]; do echo ".,$seconds,98304,50,$done"; done=$((done+1)); done >>"$rows"
printf 'Setting intra_op_num_threads to 1\\n\\nSession creation time cost: 0.217932 s\\nFirst inference time cost: 196 ms\\n'
printf 'Total inference time cost: 1.2 s\\nTotal inference requests: %d\\n' $runs
printf 'Average inference time cost total: %d.%03d ms\\n' {_MILLISECONDS}
printf 'Total inference run time: 1.3 s\\nNumber of inferences per second: 10.1\\nAvg CPU usage: 11 %%\\n'
printf 'Peak working set size: 271122432 bytes\\n'"""

FAKE_NCNN = f"""file=${{6#param=}}; {_SIZE}
[ -f "$file" ] || exit 255
printf 'loop_count = %d\\nnum_threads = %d\\npowersave = %d\\ngpu_device = -1\\ncooling_down = 0\\n' $1 $2 $3 >&2
printf '%20s  min = %4d.%02d  max = %7.2f  avg = %4d.%02d\\n' $file 1 0 999 $((size / 1000)) $((size % 1000 / 10)) >&2"""

FAKE_MNN = f"""file=$(echo "$1"/*.mnn); {_SIZE}
printf 'MNN benchmark\\nForward type: CPU thread=%d precision=%d\\n--------> Benchmarking... loop = %d\\n' $5 $6 $2
printf '[ - ] %-24s    max = %8.3f ms  min = %8.3f ms  avg = %d.%03d ms\\n' "${{file##*/}}" 1 1 {_MILLISECONDS}"""

FAKE_LITERT = f"""for word; do case $word in --graph=*) file=${{word#*=}};; --num_runs=*) runs=${{word#*=}};; esac; done
{_SIZE}
echo "INFO: STARTING!"; echo "INFO: Graph: [$file]"; echo "INFO: Initialized session in 5.685ms."
echo "INFO: count=1 curr=18535"; echo; echo "INFO: count=$runs first=14500 curr=14500 min=14000 max=15000 avg=14575.2 std=9"
echo "INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 14462.3, Inference (avg): $size" """

FAKE_EXECUTORCH = f"""for word; do
case $word in --model_path=*) file=${{word#*=}};; --num_executions=*) runs=${{word#*=}};; esac; done
{_SIZE}
{{ echo 'Model loaded in 12.500000 ms.'; done=1
while [ $done -le $runs ]; do
printf 'Iteration %d of %d: %d.%03d000 ms\\n' $done $runs {_MILLISECONDS}; done=$((done+1)); done
printf 'Model executed successfully %d time(s) in %d.000000 ms.\\n' $runs $((size * runs / 1000))
echo '2 outputs: '; }} >log-of-device
echo 'OutputX 0: tensor(sizes=[1, 10], [0., 1.])'"""
