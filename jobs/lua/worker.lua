-- What a worker does with a job: from the claim to its end.

local function has(models, model) return string.find(models, ' ' .. model .. ' ', 1, true) end

-- queue worker nonce lease ranks here there known
-- -> {id, token, attempt, request, deadline left or '', errors} | nil
-- By priority, then by age, of those that are ready and fit `ranks`. here, there: the models that
-- this worker, and an idle one, have in memory, each between spaces. A job whose model is not here
-- is overtaken by one whose model is, for OVERTAKEN; one whose model is there is left, for LEFT.
-- known: the models of its catalogue, likewise; '' for all. Others are for others.
function step.claim(queue, worker, nonce, lease, ranks, here, there, known)
  for priority = 0, 2 do
    local first, deadline_at
    for _, id in ipairs(ready_jobs(queue, priority)) do
      local h = get(id, 'ranks', 'deadline_at', 'model', 'ready_at')
      local waited = now - tonumber(h[4])
      if h[2] and tonumber(h[2]) <= now then
        move(id, 'expired')
      elseif tonumber(h[1]) <= tonumber(ranks) and (known == '' or has(known, h[3])) then
        if has(here, h[3]) or waited > OVERTAKEN then
          first, deadline_at = id, h[2]
          break
        elseif not first and (waited > LEFT or not has(there, h[3])) then
          first, deadline_at = id, h[2]
        end
      end
      if first and here == '' then break end
    end
    if first then return take(first, worker, nonce, now + tonumber(lease), deadline_at) end
  end
end

-- queue ranks most known -> how many jobs claim would find, counted up to `most`
function step.waiting(queue, ranks, most, known)
  local found = 0
  for priority = 0, 2 do
    for _, id in ipairs(ready_jobs(queue, priority)) do
      local h = get(id, 'ranks', 'model')
      local fits = tonumber(h[1]) <= tonumber(ranks)
      if fits and (known == '' or has(known, h[2])) then found = found + 1 end
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
  local h = get(id, 'state', 'token')
  if h[1] == state and h[2] == token then return 1 end  -- said twice: the answer was lost
  local now_is = held(id, token)
  if not now_is then return 0 end
  if now_is == 'queued' then readopt(id) end
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
