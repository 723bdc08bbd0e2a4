-- What a worker does with a job: from the claim to its end.

local function has(models, model) return string.find(models, ' ' .. model .. ' ', 1, true) end

-- Whether a worker of so many ranks, which knows these models, can take the job. What is to be settled
-- takes no rank and no model; what comes too late expires here.
local function fitting(ranks, known)
  ranks = tonumber(ranks)
  return function(id)
    local h = get(id, 'ranks', 'model', 'committing', 'cancel', 'deadline_at', 'crashes')
    if not h[1] then return nil end
    if to_settle(unpack(h, 3)) then return true end
    if h[5] and tonumber(h[5]) <= now and not h[3] then
      move(id, 'expired')
      return false
    end
    return tonumber(h[1]) <= ranks and (known == '' or has(known, h[2]))
  end
end

-- queue worker nonce lease ranks here there known
-- -> {id, token, attempt, request, pictures or '', deadline left or '', errors, committing, canceled, poisoned}
-- | nil
-- The first of those that are ready and fit `ranks`. here, there: the models that this worker, and an
-- idle one, have in memory, each between spaces. A job whose model is not here is overtaken by one
-- of its tenant whose model is, for OVERTAKEN; one whose model is there is left, for LEFT.
-- known: the models of its catalogue, likewise; '' for all. Others are for others.
-- The same nonce again, its answer was lost: the same job.
function step.claim(queue, worker, nonce, lease, ranks, here, there, known)
  local again = redis.call('GET', P .. 'claimed:' .. nonce)
  if again and held(again, get(again, 'fence')[1] .. ':' .. nonce) then return claimed(again) end
  if redis.call('EXISTS', P .. 'paused:' .. queue) == 1 then return nil end
  local first, before
  for _, row in ipairs(ready_jobs(queue, fitting(ranks, known))) do
    local others = before and (row.tenant ~= before.tenant or row.rank ~= before.rank)
    if first and (here == '' or others) then break end
    local h = get(row.id, 'model', 'ready_at', 'committing', 'cancel', 'deadline_at', 'crashes')
    local waited = now - tonumber(h[2])
    if has(here, h[1]) or waited > OVERTAKEN or to_settle(unpack(h, 3)) then
      first = row.id
      break
    elseif not first and (waited > LEFT or not has(there, h[1])) then
      first, before = row.id, row
    end
  end
  return first and take(first, worker, nonce, now + tonumber(lease))
end

-- queue ranks most known -> how many jobs claim would find, counted up to `most`
function step.waiting(queue, ranks, most, known)
  if redis.call('EXISTS', P .. 'paused:' .. queue) == 1 then return 0 end
  return math.min(tonumber(most), #ready_jobs(queue, fitting(ranks, known)))
end

-- id token lease plan progress publish -> 'ok' | 'cancel' | 'lost'; plan and progress: JSON or ''
-- for no news; publish: '1' where the holder will, if the answer is 'ok'
function step.renew(id, token, lease, plan, progress, publish)
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
  if canceling(id) then return 'cancel' end
  if publish == '1' then redis.call('HSET', job(id), 'committing', 1) end
  return 'ok'
end

-- id token state artifacts metrics error dead -> 1 done | 0 fenced
function step.finish(id, token, state, artifacts, metrics, err, dead)
  local h = get(id, 'state', 'token')
  if h[1] == state and h[2] == token then return 1 end  -- said twice: the answer was lost
  local now_is = held(id, token)
  if not now_is then return 0 end
  if now_is == 'queued' then readopt(id) end
  close_attempt(id, err)
  redis.call('HSET', job(id), 'artifacts', artifacts, 'metrics', metrics)
  account(id, state == 'succeeded', cjson.decode(artifacts), cjson.decode(metrics))
  if err ~= '' then redis.call('HSET', job(id), 'error', err) end
  if dead == '1' then mark_dead(id) end
  if state == 'succeeded' then
    local h = get(id, 'queue', 'started_at', 'model', 'work')
    local took = now - tonumber(h[2])
    local function note(list, value)
      redis.call('LPUSH', P .. list, value)
      redis.call('LTRIM', P .. list, 0, 49)
    end
    note('ran:' .. h[1], took)
    note('pace:' .. h[1] .. ':' .. h[3], took / tonumber(h[4] or 1))
  end
  move(id, state)
  return 1
end

-- id token error delay counted late_error -> 'queued' | 'canceled' | 'failed' (no time left) | 'fenced'
function step.fail(id, token, err, delay, counted, late_error)
  local state = held(id, token)
  if not state then return 'fenced' end
  if state == 'queued' then return 'queued' end  -- sent twice, or reaped meanwhile
  close_attempt(id, err)
  local h = get(id, 'deadline_at', 'errors')
  local late = h[1] and tonumber(h[1]) <= now + tonumber(delay)
  if committing(id) then
    if canceling(id) or late then delay = 0 end
  elseif canceling(id) then
    move(id, 'canceled')
    return 'canceled'
  elseif late then
    redis.call('HSET', job(id), 'error', late_error)
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
