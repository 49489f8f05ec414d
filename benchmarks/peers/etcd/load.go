// A closed-loop load generator for etcd, on etcd's own Go client: N callers, each with one request outstanding, spread
// over a few client connections. Prints one JSON object.
//
// With -gap-ms it also reports every stretch without any acknowledged request that was at least so long, as a pair of
// Unix times in nanoseconds: that is how a fail-over is timed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.uber.org/zap"
)

type settings struct {
	endpoints    []string
	callers      int
	connections  int
	valueSize    int
	keySpace     int
	readRatio    float64
	seconds      time.Duration
	warmup       time.Duration
	timeout      time.Duration
	gap          time.Duration
	seed         int64
	targetLeader bool
}

type gap struct {
	Begin int64 `json:"begin_ns"`
	End   int64 `json:"end_ns"`
}

type report struct {
	Operations int              `json:"operations"`
	Errors     int64            `json:"errors"`
	Seconds    float64          `json:"seconds"`
	Throughput float64          `json:"throughput_per_s"`
	Latency    map[string]int64 `json:"latency_us"`
	CPU        float64          `json:"generator_cpu"`
	Gaps       []gap            `json:"gaps"`
	Go         string           `json:"go"`
}

func parseFlags() settings {
	var s settings
	endpoints := flag.String("endpoints", "http://127.0.0.1:2379", "comma separated")
	flag.IntVar(&s.callers, "callers", 256, "requests outstanding")
	flag.IntVar(&s.connections, "connections", 8, "client connections that the callers share")
	flag.IntVar(&s.valueSize, "value-size", 256, "bytes")
	flag.IntVar(&s.keySpace, "key-space", 10000, "distinct keys")
	flag.Float64Var(&s.readRatio, "read-ratio", 0, "share of linearizable gets, 0 to 1")
	flag.DurationVar(&s.seconds, "duration", 5*time.Second, "measured time")
	flag.DurationVar(&s.warmup, "warmup", time.Second, "time before it, not measured")
	flag.DurationVar(&s.timeout, "timeout", 10*time.Second, "of one request")
	flag.DurationVar(&s.gap, "gap", 0, "report stretches without service at least so long; 0: none")
	flag.Int64Var(&s.seed, "seed", 1, "of keys and values")
	flag.BoolVar(&s.targetLeader, "target-leader", false, "connect to the leader only")
	flag.Parse()
	s.endpoints = strings.Split(*endpoints, ",")
	if s.connections > s.callers {
		s.connections = s.callers
	}
	return s
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "etcd load:", err)
	os.Exit(1)
}

func connect(endpoints []string) *clientv3.Client {
	quiet := zap.NewProductionConfig()
	quiet.Level = zap.NewAtomicLevelAt(zap.ErrorLevel) // retries are counted, not written out one by one
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    time.Second, // lets the client notice a member that hangs
		DialKeepAliveTimeout: time.Second,
		LogConfig:            &quiet,
	})
	if err != nil {
		fail(err)
	}
	return client
}

// leaderOnly keeps the endpoint of the member that leads.
func leaderOnly(endpoints []string) []string {
	client := connect(endpoints)
	defer client.Close()
	for _, endpoint := range endpoints {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		status, err := client.Status(ctx, endpoint)
		cancel()
		if err == nil && status.Leader == status.Header.MemberId {
			return []string{endpoint}
		}
	}
	fail(fmt.Errorf("no leader among %v", endpoints))
	return nil
}

// service remembers when a request was last acknowledged, and the gaps between.
type service struct {
	last    int64
	mutex   sync.Mutex
	gaps    []gap
	minimum int64
}

func (s *service) acknowledged(now int64) {
	before := atomic.SwapInt64(&s.last, now)
	if before != 0 && now-before >= s.minimum {
		s.mutex.Lock()
		s.gaps = append(s.gaps, gap{before, now})
		s.mutex.Unlock()
	}
}

func caller(s settings, client *clientv3.Client, seed int64, begin, end time.Time, value string, track *service, errors *int64) []int64 {
	generator := rand.New(rand.NewSource(seed))
	latencies := make([]int64, 0, 1<<14)
	for {
		start := time.Now()
		if !start.Before(end) {
			return latencies
		}
		key := fmt.Sprintf("bench/%08d", generator.Intn(s.keySpace))
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		var err error
		if s.readRatio > 0 && generator.Float64() < s.readRatio {
			_, err = client.Get(ctx, key)
		} else {
			_, err = client.Put(ctx, key, value)
		}
		cancel()
		done := time.Now()
		if err != nil {
			if !start.Before(begin) {
				atomic.AddInt64(errors, 1)
			}
			continue
		}
		if s.gap > 0 {
			track.acknowledged(done.UnixNano())
		}
		if !start.Before(begin) {
			latencies = append(latencies, int64(done.Sub(start)))
		}
	}
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fail(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func percentiles(latencies []int64) map[string]int64 {
	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	at := func(share float64) int64 {
		if len(latencies) == 0 {
			return 0
		}
		rank := int(share*float64(len(latencies))+0.9999999) - 1
		if rank < 0 {
			rank = 0
		}
		return latencies[rank] / 1000
	}
	return map[string]int64{"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1)}
}

func main() {
	s := parseFlags()
	if s.targetLeader {
		s.endpoints = leaderOnly(s.endpoints)
	}
	clients := make([]*clientv3.Client, s.connections)
	for i := range clients {
		clients[i] = connect(s.endpoints)
		defer clients[i].Close()
	}
	bytes := make([]byte, s.valueSize)
	rand.New(rand.NewSource(s.seed)).Read(bytes)
	value := string(bytes)
	track := &service{minimum: int64(s.gap)}
	var errors int64
	results := make([][]int64, s.callers)
	begin := time.Now().Add(s.warmup)
	end := begin.Add(s.seconds)
	var group sync.WaitGroup
	for i := 0; i < s.callers; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			results[i] = caller(s, clients[i%len(clients)], s.seed+int64(i), begin, end, value, track, &errors)
		}(i)
	}
	time.Sleep(time.Until(begin))
	cpu := cpuSeconds()
	group.Wait()
	elapsed := time.Since(begin).Seconds()
	cpu = cpuSeconds() - cpu
	if s.gap > 0 && track.last != 0 {
		track.acknowledged(time.Now().UnixNano()) // a gap that is not over yet lasted at least so long
	}
	var all []int64
	for _, part := range results {
		all = append(all, part...)
	}
	out := report{
		Operations: len(all), Errors: errors, Seconds: elapsed, Throughput: float64(len(all)) / elapsed,
		Latency: percentiles(all), CPU: cpu / elapsed, Gaps: track.gaps, Go: runtime.Version(),
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail(err)
	}
}
