-- The job's life, each step in one go. KEYS[1]: the prefix of all keys; ARGV: the step, its arguments.
-- Redis's own clock is the only clock. Nothing here is called by anyone but store.py.
--
-- job:ID hash        id state seq queue tenant model task priority ranks request warnings created_at
--                    ready_at started_at finished_at deadline_at fence token worker lease_until plan
--                    progress attempt:N errors crashes sends cancel deleted artifacts metrics error
-- queued:QUEUE zset  what claim picks from; score = priority, then ready_at
-- send zset          score = when the next hint is due
-- running zset       score = lease_until
-- deadlines zset     score = deadline_at, while queued
-- idem:TENANT:KEY    hash: id, body
-- wish:ID list       wakes the worker of a running job; the truth is job:ID cancel
-- dead, purge zset   failed for good by faults; deleted, artifacts still to be removed
-- jobs:TENANT, jobs:TENANT:STATE zset   listing, score = created_at
-- events stream      every change

local P = KEYS[1] .. ':'
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local FINAL = {succeeded = true, failed = true, canceled = true, expired = true}
local RESEND, RESEND_MAX, CRASHES = 60, 3600, 3

local function job(id) return P .. 'job:' .. id end
local function get(id, ...) return redis.call('HMGET', job(id), ...) end
local function time(x) return string.format('%.6f', x) end
local function queue_score(priority, ready_at) return tonumber(priority) * 1e11 + tonumber(ready_at) end

local function emit(id, kind, data)
  local seq = redis.call('HINCRBY', job(id), 'seq', 1)
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', 100000, '*', 'job', id, 'seq', seq,
    'kind', kind, 'data', data or '')
end

local function move(id, state)
  local h = get(id, 'state', 'tenant', 'created_at', 'queue')
  redis.call('ZREM', P .. 'jobs:' .. h[2] .. ':' .. h[1], id)
  redis.call('ZADD', P .. 'jobs:' .. h[2] .. ':' .. state, h[3], id)
  redis.call('HSET', job(id), 'state', state)
  if state ~= 'queued' then
    redis.call('ZREM', P .. 'queued:' .. h[4], id)
    redis.call('ZREM', P .. 'send', id)
    redis.call('ZREM', P .. 'deadlines', id)
  end
  if state ~= 'running' then redis.call('ZREM', P .. 'running', id) end
  if FINAL[state] then
    redis.call('HSET', job(id), 'finished_at', time(now))
    if redis.call('HEXISTS', job(id), 'deleted') == 1 then
      redis.call('ZADD', P .. 'purge', now, id)
    end
  end
  emit(id, state)
end

-- The open attempt gets its end and its error (JSON text, '' for none).
local function close_attempt(id, err)
  local h = get(id, 'fence', 'plan')
  local name = 'attempt:' .. h[1]
  local text = redis.call('HGET', job(id), name)
  if not text then return end
  local attempt = cjson.decode(text)
  attempt.ended_at = now
  if h[2] then attempt.plan = cjson.decode(h[2]) end
  if err ~= '' then attempt.error = cjson.decode(err) end
  redis.call('HSET', job(id), name, cjson.encode(attempt))
end

local function enqueue(id, delay)
  local h = get(id, 'queue', 'priority', 'deadline_at')
  local ready_at = now + delay
  redis.call('HSET', job(id), 'ready_at', time(ready_at), 'sends', 0)
  redis.call('HDEL', job(id), 'lease_until')
  move(id, 'queued')
  redis.call('ZADD', P .. 'queued:' .. h[1], queue_score(h[2], ready_at), id)
  redis.call('ZADD', P .. 'send', ready_at, id)
  if h[3] then redis.call('ZADD', P .. 'deadlines', h[3], id) end
end

-- 'running' or 'queued' while the caller's token is the newest one, else nil. A holder whose lease
-- ran out keeps its job as long as nobody else has claimed it.
local function held(id, token)
  local h = get(id, 'state', 'token')
  if h[2] == token and not FINAL[h[1]] then return h[1] end
end

local function readopt(id)
  redis.call('HINCRBY', job(id), 'crashes', -1)
  local n = redis.call('HGET', job(id), 'fence')
  local attempt = cjson.decode(redis.call('HGET', job(id), 'attempt:' .. n))
  attempt.ended_at, attempt.error = nil, nil
  redis.call('HSET', job(id), 'attempt:' .. n, cjson.encode(attempt))
  move(id, 'running')
end

local function ready_jobs(queue, priority)
  return redis.call('ZRANGE', P .. 'queued:' .. queue, queue_score(priority, 0),
    queue_score(priority, now), 'BYSCORE', 'LIMIT', 0, 1000)
end

local function take(id, worker, nonce, lease_until, deadline_at)
  local fence = redis.call('HINCRBY', job(id), 'fence', 1)
  local token = fence .. ':' .. nonce
  redis.call('HSET', job(id), 'token', token, 'worker', worker, 'started_at', time(now),
    'lease_until', time(lease_until), 'attempt:' .. fence,
    cjson.encode({number = fence, worker = worker, started_at = now}))
  redis.call('HDEL', job(id), 'progress', 'plan')
  move(id, 'running')
  redis.call('ZADD', P .. 'running', lease_until, id)
  local h = get(id, 'request', 'errors')
  local deadline_s = deadline_at and time(tonumber(deadline_at) - now) or ''
  return {id, token, fence, h[1], deadline_s, h[2] or '[]'}
end

local step = {}

-- id request queue priority tenant model task ranks deadline_s warnings key body
-- -> {1, id} created | {0, id} the same request came before | {-1, id} the key was used otherwise
function step.submit(id, request, queue, priority, tenant, model, task, ranks, deadline_s, warnings, key, body)
  if redis.call('EXISTS', job(id)) == 1 then return {1, id} end  -- sent twice, the answer was lost
  if key ~= '' then
    local idem = P .. 'idem:' .. tenant .. ':' .. key
    local h = redis.call('HMGET', idem, 'id', 'body')
    if h[1] and redis.call('HEXISTS', job(h[1]), 'id') == 1
        and redis.call('HEXISTS', job(h[1]), 'deleted') == 0 then
      return {h[2] == body and 0 or -1, h[1]}
    end
    redis.call('HSET', idem, 'id', id, 'body', body)
    redis.call('EXPIRE', idem, 86400)
  end
  redis.call('HSET', job(id), 'id', id, 'state', 'queued', 'seq', 0, 'queue', queue,
    'priority', priority, 'tenant', tenant, 'model', model, 'task', task, 'ranks', ranks,
    'request', request, 'warnings', warnings, 'created_at', time(now), 'fence', 0, 'crashes', 0)
  if deadline_s ~= '' then
    redis.call('HSET', job(id), 'deadline_at', time(now + tonumber(deadline_s)))
  end
  redis.call('ZADD', P .. 'jobs:' .. tenant, time(now), id)
  enqueue(id, 0)
  return {1, id}
end

-- The caller has sent the first hint itself: the reaper need not.
function step.hinted(id)
  redis.call('ZADD', P .. 'send', 'XX', now + RESEND, id)
end

-- queue worker nonce lease ranks -> {id, token, attempt, request, deadline left or '', errors} | nil
-- First by priority, then by age, of those that are ready and fit `ranks`.
function step.claim(queue, worker, nonce, lease, ranks)
  for priority = 0, 2 do
    for _, id in ipairs(ready_jobs(queue, priority)) do
      local h = get(id, 'ranks', 'deadline_at')
      if h[2] and tonumber(h[2]) <= now then
        move(id, 'expired')
      elseif tonumber(h[1]) <= tonumber(ranks) then
        return take(id, worker, nonce, now + tonumber(lease), h[2])
      end
    end
  end
end

-- queue ranks most -> how many jobs claim would find, counted up to `most`
function step.waiting(queue, ranks, most)
  local found = 0
  for priority = 0, 2 do
    for _, id in ipairs(ready_jobs(queue, priority)) do
      if tonumber(get(id, 'ranks')[1]) <= tonumber(ranks) then found = found + 1 end
      if found == tonumber(most) then return found end
    end
  end
  return found
end

-- id token lease plan progress -> 'ok' | 'cancel' | 'lost'; plan and progress: JSON or '' for no news
function step.renew(id, token, lease, plan, progress)
  local state = held(id, token)
  if not state then return 'lost' end
  if state == 'queued' then readopt(id) end
  local lease_until = now + tonumber(lease)
  redis.call('HSET', job(id), 'lease_until', time(lease_until))
  redis.call('ZADD', P .. 'running', lease_until, id)
  if plan ~= '' then redis.call('HSET', job(id), 'plan', plan) end
  if progress ~= '' then
    redis.call('HSET', job(id), 'progress', progress)
    emit(id, 'progress', progress)
  end
  return redis.call('HEXISTS', job(id), 'cancel') == 1 and 'cancel' or 'ok'
end

-- id token state artifacts metrics error dead -> 1 done | 0 fenced
function step.finish(id, token, state, artifacts, metrics, err, dead)
  if not held(id, token) then return 0 end
  close_attempt(id, err)
  redis.call('HSET', job(id), 'artifacts', artifacts, 'metrics', metrics)
  if err ~= '' then redis.call('HSET', job(id), 'error', err) end
  if dead == '1' then redis.call('ZADD', P .. 'dead', now, id) end
  move(id, state)
  return 1
end

-- id token error delay counted -> 'queued' | 'canceled' | 'failed' (no time left) | 'fenced'
function step.fail(id, token, err, delay, counted)
  local state = held(id, token)
  if not state then return 'fenced' end
  if state == 'queued' then return 'queued' end  -- sent twice, or reaped meanwhile
  close_attempt(id, err)
  if redis.call('HEXISTS', job(id), 'cancel') == 1 then
    move(id, 'canceled')
    return 'canceled'
  end
  local h = get(id, 'deadline_at', 'errors')
  if h[1] and tonumber(h[1]) <= now + tonumber(delay) then
    redis.call('HSET', job(id), 'error', err)
    move(id, 'failed')
    return 'failed'
  end
  if counted == '1' then
    local errors = cjson.decode(h[2] or '[]')
    errors[#errors + 1] = cjson.decode(err)
    redis.call('HSET', job(id), 'errors', cjson.encode(errors))
  end
  enqueue(id, tonumber(delay))
  return 'queued'
end

-- id tenant -> the state after it, nil if unknown
function step.cancel(id, tenant)
  local h = get(id, 'state', 'tenant', 'deleted', 'cancel')
  if h[2] ~= tenant or h[3] then return nil end
  if h[1] == 'queued' then
    move(id, 'canceled')
    return 'canceled'
  end
  if h[1] == 'running' and not h[4] then
    redis.call('HSET', job(id), 'cancel', time(now))
    redis.call('RPUSH', P .. 'wish:' .. id, 'cancel')
    redis.call('EXPIRE', P .. 'wish:' .. id, 60)
    emit(id, 'canceling')
  end
  return h[1]
end

-- id tenant -> 1 | nil if unknown. The record goes once its artifacts are gone: see purged.
function step.delete(id, tenant)
  local state = step.cancel(id, tenant)
  if not state then return nil end
  redis.call('HSET', job(id), 'deleted', 1)
  redis.call('ZREM', P .. 'jobs:' .. tenant, id)
  if FINAL[state] then redis.call('ZADD', P .. 'purge', now, id) end
  return 1
end

function step.purged(id)
  local h = get(id, 'tenant', 'state')
  redis.call('ZREM', P .. 'purge', id)
  redis.call('ZREM', P .. 'dead', id)
  if h[1] then redis.call('ZREM', P .. 'jobs:' .. h[1] .. ':' .. h[2], id) end
  redis.call('DEL', job(id))
end

-- lease crash_error poison_error -> {ids whose hint is due, ids whose artifacts are to be removed}
function step.reap(lease, crash_error, poison_error)
  lease = tonumber(lease)
  local last = tonumber(redis.call('GET', P .. 'reaped_at') or now)
  redis.call('SET', P .. 'reaped_at', time(now))
  if now - last > lease / 2 then  -- Redis or every reaper was away: nobody could renew
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now + lease)) do
      redis.call('ZADD', P .. 'running', now + lease, id)
      redis.call('HSET', job(id), 'lease_until', time(now + lease))
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now, 'LIMIT', 0, 100)) do
    local crashes = redis.call('HINCRBY', job(id), 'crashes', 1)
    close_attempt(id, crash_error)
    if redis.call('HEXISTS', job(id), 'cancel') == 1 then
      move(id, 'canceled')
    elseif crashes >= CRASHES then
      redis.call('HSET', job(id), 'error', poison_error)
      redis.call('ZADD', P .. 'dead', now, id)
      move(id, 'failed')
    else
      enqueue(id, 0)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', now, 'LIMIT', 0, 100)) do
    move(id, 'expired')
  end
  local due = redis.call('ZRANGEBYSCORE', P .. 'send', '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    local sends = redis.call('HINCRBY', job(id), 'sends', 1)
    redis.call('ZADD', P .. 'send', now + math.min(RESEND_MAX, RESEND * 2 ^ (sends - 1)), id)
  end
  return {due, redis.call('ZRANGE', P .. 'purge', 0, 99)}
end

return step[ARGV[1]](unpack(ARGV, 2))
